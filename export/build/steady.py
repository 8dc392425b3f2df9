"""Starts a Python process in which everything lies at the same addresses every time.

TensorRT-RTX numbers parts of an engine in the order of their addresses, so an engine's bytes repeat only where addresses do:
without address randomisation, with a fixed seed of Python's hashes, a fixed environment, and threads that do not overtake
each other (one core, and a scheduler that lets a thread run until it waits). Where the system refuses one of these, as some
containers do, engines are as good, but their bytes differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

KEPT = (
    "PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "TMPDIR",
    "CUDA_VISIBLE_DEVICES",
    "SYSTEMROOT",
    "TEMP",
    "USERPROFILE",
    "LOCALAPPDATA",
)
"""Of the environment; every other variable would move what follows it."""

FIXED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NO_RANDOMISATION = 0x0040000  # ADDR_NO_RANDOMIZE of personality(2), which a process passes on to what it becomes

_SETTLE = f"""
import sys
del sys.path[0]
import ctypes, os
try:
    ctypes.CDLL(None).personality({NO_RANDOMISATION})
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
except (AttributeError, OSError):
    pass
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def start(entry: str, environment: Mapping[str, str], errors: IO[Any], folder: Path) -> subprocess.Popen[bytes]:
    """A process that runs a function, with pipes to and from it.

    Args:
        entry: "module:function".
        environment: variables to be set beside those that are kept.
        errors: where its standard error goes.
        folder: its working folder, from which it imports nothing.
    """
    variables = {name: os.environ[name] for name in KEPT if name in os.environ} | FIXED | dict(environment)
    module, _, function = entry.partition(":")
    linux = sys.platform == "linux"
    run = f"import sys; del sys.path[0]; from {module} import {function}; {function}()"  # [0]: the working folder
    code = [_SETTLE, run] if linux else [run]
    return subprocess.Popen(
        [sys.executable, "-c", *code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd=folder,
        env=variables,
        start_new_session=linux,  # Ctrl-C reaches the caller alone, who decides what follows from it
    )


def is_steady() -> bool:
    """Whether this process is one that `start` could settle."""
    if sys.platform != "linux":
        return False
    try:
        settled = int(Path("/proc/self/personality").read_text(encoding="ascii"), 16) & NO_RANDOMISATION
    except (OSError, ValueError):
        return False
    return bool(settled) and os.sched_getscheduler(0) == os.SCHED_BATCH and len(os.sched_getaffinity(0)) == 1
