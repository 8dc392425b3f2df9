"""Build processes that end as none should: each function takes the place of `hart_edge.export.build.worker:main`."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
from typing import Any


def answer(content: Any) -> None:
    os.write(1, pickle.dumps(content))


def killed() -> None:
    answer(("step", "parsing transformer"))
    answer(("node", "node_matmul_7 [MatMul]"))
    os.kill(os.getpid(), signal.SIGKILL)


def gone() -> None:
    answer(("step", "building decoder"))
    sys.stderr.write("terminate called without an active exception\n")
    sys.stderr.flush()
    os._exit(3)


def full_disk() -> None:
    answer(OSError(errno.ENOSPC, "No space left on device"))


def endless() -> None:
    answer(("step", "building transformer"))
    signal.pause()
