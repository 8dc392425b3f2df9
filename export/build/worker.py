"""Body of a build process: reads a job from standard input, builds its one engine, reads where to write it, and answers on
standard output.

Answers, pickled, in order: ("step", what), ("node", what) any number of times, ("built", facts); or one exception, after which
nothing follows.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hart_edge.runtime.errors import HartError

from .backends import BACKENDS
from .builder import Builder
from .messages import Messages, logger
from .plugins import register
from .shapes import Range
from .steady import is_steady

# What is imported here is part of what makes engines repeat: packages that draw random numbers when they are imported, as
# those written in Rust do, move what is allocated after them.


@dataclass(frozen=True)
class EngineJob:
    """Build `name` from the ONNX file `graph` into the file `output`."""

    name: str
    graph: Path
    output: Path


@dataclass(frozen=True)
class BuildJob:
    """What is to be built: see `Builder`. plugins: names of the operators that are to be plugins."""

    backend: str
    targets: tuple[str, ...]
    ranges: Mapping[str, Range]
    engines: tuple[EngineJob, ...]
    plugins: tuple[str, ...] = ()


def main() -> None:
    """Of the process that `process.py` starts."""
    sys.setswitchinterval(1000)  # threads that log take turns when one of them waits, not by the clock: see steady.py
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer

    def send(answer: Any) -> None:
        os.write(answers, pickle.dumps(answer))

    try:
        job: BuildJob = pickle.load(sys.stdin.buffer)
        facts, engine = work(job, send)
        output: Path = pickle.load(sys.stdin.buffer)  # after the build: its length is one more thing that would move addresses
        output.write_bytes(memoryview(engine))
        send(("built", facts))
    except OSError as error:
        send(OSError(error.errno, error.strerror))
    except HartError as error:
        send(error)


def work(job: BuildJob, send: Callable[[Any], None]) -> tuple[dict[str, Any], Any]:
    """Build the job's engine, whose graph is in the working folder; returns its facts and its content."""
    backend = BACKENDS[job.backend]
    trt = backend.package.load()
    messages = Messages(lambda node: send(("node", node)))
    log = logger(trt, messages)
    plugins = register(trt, backend, job.plugins)
    builder = Builder(trt, log, messages, job.targets, job.ranges, lambda what: send(("step", what)), plugins)
    (engine,) = job.engines
    facts, content = builder.build(engine.name, engine.graph)
    return facts | {"repeatable": is_steady()}, content
