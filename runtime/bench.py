"""Measures contenders, each in a process of its own, run by run in turn: drift of the machine meets all of them alike."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from .bundle import Bundle
from .errors import HartError
from .options import Options
from .pipeline import Pipeline
from .timing import StageTimes, peak_memory

Once = Callable[[StageTimes], None]


@dataclass(frozen=True)
class Job:
    """What is drawn: prompts with one seed each, and the settings."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    options: Options


@dataclass(frozen=True)
class Contender:
    """What is ready to run: the function of one run, the image tokens that a run makes, and what it runs on."""

    once: Once
    tokens: int
    backend: str


@dataclass(frozen=True)
class Loader:
    """How a contender is loaded in its process: a picklable function and its arguments."""

    function: Callable[..., Contender]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Measurement:
    """Result of one contender.

    Attributes:
        load_seconds: from the start of loading to ready.
        runs: seconds per stage of every counted run.
        tokens: image tokens of one run, all scales and pictures.
        peak_memory_bytes: largest resident size of the process.
        backend: what it ran on.
    """

    load_seconds: float
    runs: list[dict[str, float]]
    tokens: int
    peak_memory_bytes: int
    backend: str

    @property
    def stages(self) -> dict[str, float]:
        """Median seconds per stage."""
        return {stage: statistics.median(run[stage] for run in self.runs) for stage in self.runs[0]}

    @property
    def seconds(self) -> float:
        """Median seconds of a run."""
        return statistics.median(sum(run.values()) for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "stages": self.stages, "seconds": self.seconds, "tokens_per_second": self.tokens / self.seconds}


def measure(contenders: Mapping[str, Loader], runs: int) -> dict[str, Measurement]:
    """One warm-up each, then `runs` rounds in which every contender runs once."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(loader)) for name, loader in contenders.items()}
        for worker in workers.values():
            worker.once()
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(runs):
            for name, worker in workers.items():
                samples[name].append(worker.once())
        return {
            name: Measurement(worker.load_seconds, samples[name], worker.tokens, worker.peak_memory(), worker.backend)
            for name, worker in workers.items()
        }


def load_bundle(bundle: Path, backend: str, job: Job) -> Contender:
    """The runtime on a bundle, for `Loader`."""
    pipe = Pipeline.open(Bundle(bundle, check_files=False), backend=backend)
    tokens = sum(p * p for p in pipe.spec.patch_nums) * len(job.prompts)

    def once(times: StageTimes) -> None:
        pipe.generate_batch(job.prompts, seeds=job.seeds, options=job.options, times=times)

    return Contender(once, tokens, pipe.backend)


class Worker:
    """A contender in its own process; a context manager that ends it. HartErrors of the process are raised here."""

    def __init__(self, loader: Loader) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, loader), daemon=True)
        self._process.start()
        other.close()
        self.load_seconds, self.tokens, self.backend = self._receive()

    def once(self) -> dict[str, float]:
        """One run; returns seconds per stage."""
        seconds: dict[str, float] = self._ask("run")
        return seconds

    def peak_memory(self) -> int:
        """Largest resident size of the process so far, in bytes."""
        return int(self._ask("memory"))

    def _ask(self, request: str) -> Any:
        self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise HartError("a measured process died.", "It may have run out of memory; try a smaller batch.") from None
        if isinstance(answer, HartError):
            raise answer
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        self._process.kill()


def _serve(connection: Connection, loader: Loader) -> None:
    """Load, then answer requests until the other side closes."""
    try:
        start = time.perf_counter()
        contender = loader.function(*loader.arguments)
        connection.send((time.perf_counter() - start, contender.tokens, contender.backend))
        while True:
            connection.send(_run(contender.once) if connection.recv() == "run" else peak_memory())
    except (EOFError, KeyboardInterrupt):
        return
    except HartError as error:
        connection.send(error)


def _run(once: Once) -> dict[str, float]:
    times = StageTimes()
    once(times)
    return times.seconds


def job_of(prompt: str, batch: int, options: Options) -> Job:
    """The same prompt `batch` times, seeds 0, 1, …."""
    return Job((prompt,) * batch, tuple(range(batch)), options)
