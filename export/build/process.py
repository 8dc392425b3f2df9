"""The build processes, one per engine: TensorRT may crash or be killed there without harm to the caller."""

from __future__ import annotations

import pickle
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from hart_edge.runtime.errors import EngineError

from . import worker
from .backends import BACKENDS
from .library import resolvable
from .steady import start
from .worker import BuildJob

WORKER = f"{worker.__name__}:main"


def run(job: BuildJob) -> Iterator[tuple[str, Any]]:
    """Build the engines one after the other, each in a process; yields ("step", what) and, per engine, ("built", facts).

    A process ends with the iterator, however that ends. Raises what the process raised, and EngineError with the step and
    the node when it died.
    """
    library = BACKENDS[job.backend].library if job.plugins else ""
    with resolvable(library) as environment:
        for engine in job.engines:
            yield from _build(replace(job, engines=(engine,)), environment)


def _build(job: BuildJob, environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    (engine,) = job.engines
    folder, nowhere = engine.graph.absolute().parent, Path()
    with tempfile.TemporaryFile() as errors:
        process = start(WORKER, environment, errors, folder)
        try:
            # The file to write is named apart, and the graph in its folder: an engine does not depend on where it is built.
            _send(process, replace(job, engines=(replace(engine, graph=Path(engine.graph.name), output=nowhere),)))
            _send(process, engine.output.absolute())
            yield from _answers(process, errors)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _send(process: subprocess.Popen[bytes], content: Any) -> None:
    try:
        pickle.dump(content, process.stdin)  # type: ignore[arg-type]
        process.stdin.flush()  # type: ignore[union-attr]
    except BrokenPipeError:  # it died; the answers say how
        return


def _answers(process: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[tuple[str, Any]]:
    step, node = "starting", ""
    while True:
        try:
            answer = pickle.load(process.stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError):
            raise _death(process.wait(), step, node, errors) from None
        if isinstance(answer, Exception):
            raise answer
        kind, content = answer
        if kind == "node":
            node = content
            continue
        if kind == "step":
            step, node = content, ""
        yield kind, content
        if kind == "built":
            return


def _death(exit_code: int, step: str, node: str, errors: IO[bytes]) -> EngineError:
    how = f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with code {exit_code}"
    where = f"{step}, at node {node}" if node else step
    errors.seek(0)
    lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    said = f" Its last words: {lines[-1]}" if lines else ""
    return EngineError(f"the build process {how} while {where}.{said}", "It may have run out of memory; try a smaller --batch.")
