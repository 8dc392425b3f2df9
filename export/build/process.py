"""The build process: TensorRT may crash or be killed there without harm to the caller.

Messages to the caller, in order: ("step", what), ("node", what) any number of times, ("built", facts) per engine; or one
exception, after which nothing follows.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from hart_edge.runtime.errors import EngineError, HartError

from .backends import BACKENDS
from .builder import Builder, EngineJob
from .messages import Messages, logger
from .shapes import Range


@dataclass(frozen=True)
class BuildJob:
    """What the process is to do: see `Builder` and `EngineJob`."""

    backend: str
    targets: tuple[str, ...]
    ranges: Mapping[str, Range]
    engines: tuple[EngineJob, ...]


def run(job: BuildJob) -> Iterator[tuple[str, Any]]:
    """Start the process and yield its steps and facts, ("step", what) and ("built", facts).

    The process ends with the iterator, however that ends. Raises what the process raised, and EngineError with the step
    and the node when it died.
    """
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(other, job), daemon=True)
    process.start()
    other.close()
    try:
        with closing(connection):
            yield from _answers(connection, process, len(job.engines))
    finally:
        process.kill()
        process.join()


def _answers(connection: Connection, process: Any, engines: int) -> Iterator[tuple[str, Any]]:
    step, node = "starting", ""
    while engines:
        try:
            answer = connection.recv()
        except EOFError:
            process.join()
            raise _death(process.exitcode, step, node) from None
        if isinstance(answer, Exception):
            raise answer
        kind, content = answer
        if kind == "node":
            node = content
            continue
        if kind == "step":
            step, node = content, ""
        engines -= kind == "built"
        yield kind, content


def _death(exit_code: int, step: str, node: str) -> EngineError:
    how = f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with code {exit_code}"
    where = f"{step}, at node {node}" if node else step
    return EngineError(f"the build process {how} while {where}.", "It may have run out of memory; try a smaller --batch.")


def work(connection: Connection, job: BuildJob) -> None:
    """Body of the process. Ctrl-C reaches it too; the caller alone decides what follows from it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trt = BACKENDS[job.backend].load()
        messages = Messages(lambda node: connection.send(("node", node)))
        builder = Builder(trt, logger(trt, messages), messages, job.targets, job.ranges, lambda what: connection.send(("step", what)))
        for engine in job.engines:
            connection.send(("built", builder.build(engine)))
    except OSError as error:
        connection.send(OSError(error.errno, error.strerror))
    except HartError as error:
        connection.send(error)
