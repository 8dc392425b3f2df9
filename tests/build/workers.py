"""Build processes that end as none should: each function takes the place of `hart_edge.export.build.worker:main`."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import signal
import sys
from typing import Any

from hart_edge.export.build import worker
from hart_edge.export.build.plugins import PYTHON, Plugins
from hart_edge.export.build.steady import is_steady
from hart_edge.plugins import adapter, plugin


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


def unregistered() -> None:
    """The real worker, whose plugins TensorRT does not know."""
    worker.register = lambda trt, backend, names: Plugins(dict.fromkeys(names, PYTHON))
    worker.main()


def raising_shapes() -> None:
    _break(adapter.Adapter, "output_shapes")


def raising_formats() -> None:
    _break(adapter.Adapter, "supports")


def raising_scratch() -> None:
    _break(adapter.Adapter, "scratch_bytes")


def raising_fields() -> None:
    _break(plugin, "_fields")


def raising_clone() -> None:
    _break(plugin.Callbacks, "clone")


def spying() -> None:
    """The real worker, whose facts say which callbacks of plugins were called."""
    asked: set[str] = set()
    for name, callback in inspect.getmembers(plugin.Callbacks, inspect.isfunction):

        def spy(self: Any, *arguments: Any, name: str = name, callback: Any = callback) -> Any:
            asked.add(name)
            return callback(self, *arguments)

        setattr(plugin.Callbacks, name, spy)
    build = worker.Builder.build

    def spied(self: Any, name: str, path: Any) -> Any:
        facts, engine = build(self, name, path)
        return facts | {"asked": sorted(asked)}, engine

    worker.Builder.build = spied
    worker.main()


def _break(owner: Any, name: str) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("deliberate")

    setattr(owner, name, fail)
    worker.main()


def environment() -> None:
    print(*(f"{name}={value}" for name, value in os.environ.items()))


def addresses() -> None:
    """Whether the process is settled, and where things lie."""
    print(is_steady(), hex(id(object())), hex(id(worker)), {name for name in ("a", "b", "c", "d")})


def imports() -> None:
    import ctypes
    import pickle

    print(__file__, ctypes.__file__, pickle.__file__)
