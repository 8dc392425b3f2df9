"""Measures contenders, each in a process of its own, run by run in turn: drift of the machine meets all of them alike."""

from __future__ import annotations

import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from .bench_memory import open_watch
from .bundle import Bundle
from .device_memory import DeviceMemory
from .errors import HartError
from .options import Options
from .pipeline import Pipeline
from .timing import StageTimes, peak_memory

Once = Callable[[StageTimes], None]

WARM_UPS = 2  # the first run loads kernels and compiles, the second records graphs


@dataclass(frozen=True)
class Job:
    """What is drawn: prompts with one seed each, and the settings."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    options: Options


def nothing_to_wait_for() -> None:
    """Of a contender whose stages have ended when they return."""


def no_device() -> None:
    """Of a contender that takes no device memory."""


@dataclass(frozen=True)
class Contender:
    """What is ready to run.

    Attributes:
        once: one run; from the prompts to pictures in host memory.
        pictures, tokens: pictures and image tokens that a run makes.
        backend: what it runs on.
        wait: returns when the work of a stage is done; called at the end of every stage that is timed. `nothing_to_wait_for` saves
            the run that times no stage.
        device_memory: most bytes of device memory so far, without the driver's context; None where none is used.
        flops: operations per stage that any implementation of the run has to make, from a contender that knows the sizes.
    """

    once: Once
    pictures: int
    tokens: int
    backend: str
    wait: Callable[[], None] = nothing_to_wait_for
    device_memory: Callable[[], int | None] = no_device
    flops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Loader:
    """How a contender is loaded in its process: a picklable function and its arguments."""

    function: Callable[..., Contender]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """Seconds per stage, each with its end waited for, and from start to end of a run in which nothing but its end is."""

    stages: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """Result of one contender.

    Attributes:
        load_seconds: from the start of loading to ready.
        runs: every counted run.
        pictures, tokens: pictures and image tokens of one run.
        peak_memory_bytes: largest resident size of the process.
        peak_device_bytes: most device memory that it took, None without a device.
        backend, flops: as of the contender.
    """

    load_seconds: float
    runs: list[Run]
    pictures: int
    tokens: int
    peak_memory_bytes: int
    peak_device_bytes: int | None
    backend: str
    flops: dict[str, int]

    @property
    def stages(self) -> dict[str, float]:
        """Median seconds per stage."""
        return {stage: statistics.median(run.stages[stage] for run in self.runs) for stage in self.runs[0].stages}

    @property
    def seconds(self) -> float:
        """Median seconds of a run."""
        return statistics.median(run.seconds for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "runs": [vars(run) for run in self.runs],
            "stages": self.stages,
            "seconds": self.seconds,
            "images_per_second": self.pictures / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
        }


@dataclass(frozen=True)
class Outcome:
    """Results by contender, why others have none, and which were measured alone, after the others."""

    results: dict[str, Measurement]
    failed: dict[str, HartError]
    alone: tuple[str, ...] = ()


def measure(contenders: Mapping[str, Loader], runs: int) -> Outcome:
    """Warm-ups, then `runs` rounds in which every contender runs once. One that fails does not stop the others.

    All stay loaded meanwhile, so what a contender failed for may be memory that the others hold: it has another try alone.
    """
    outcome = _in_turn(contenders, runs)
    if len(contenders) == 1:
        return outcome
    results, failed, alone = outcome.results, outcome.failed, []
    for name in [name for name in contenders if name in failed]:
        again = _in_turn({name: contenders[name]}, runs)
        if name in again.results:
            results[name] = again.results[name]
            del failed[name]
            alone.append(name)
    return Outcome({name: results[name] for name in contenders if name in results}, failed, tuple(alone))


def _in_turn(contenders: Mapping[str, Loader], runs: int) -> Outcome:
    failed: dict[str, HartError] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, loader in contenders.items():
            with _noted(name, failed):
                worker = stack.enter_context(Worker(loader))
                for _ in range(WARM_UPS):
                    worker.once()
                workers[name] = worker
        samples: dict[str, list[Run]] = {name: [] for name in workers}
        for _ in range(runs):
            for name in [name for name in workers if name not in failed]:
                with _noted(name, failed):
                    samples[name].append(workers[name].once())
        results: dict[str, Measurement] = {}
        for name in [name for name in workers if name not in failed]:
            with _noted(name, failed):
                results[name] = workers[name].measurement(samples[name])
    return Outcome(results, failed)


@contextmanager
def _noted(name: str, failed: dict[str, HartError]) -> Iterator[None]:
    try:
        yield
    except HartError as error:
        failed[name] = error


def load_bundle(bundle: Path, backend: str, job: Job, low_vram: bool = False) -> Contender:
    """The runtime on a bundle, for `Loader`."""
    watch = open_watch(backend)
    with watch.turn():
        pipe = Pipeline.open(Bundle(bundle, check_files=False), backend=backend, low_vram=low_vram)
    tokens, memory = sum(p * p for p in pipe.spec.patch_nums) * len(job.prompts), pipe.memory

    def once(times: StageTimes) -> None:
        with watch.turn():
            pipe.generate_batch(job.prompts, seeds=job.seeds, options=job.options, times=times)

    if not isinstance(memory, DeviceMemory):
        return Contender(once, len(job.prompts), tokens, pipe.backend)
    return Contender(once, len(job.prompts), tokens, pipe.backend, memory.stream.synchronize, watch.peak)


class Worker:
    """A contender in its own process; a context manager that ends it. Errors of the process are raised here as HartErrors."""

    def __init__(self, loader: Loader) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, loader), daemon=True)
        self._process.start()
        other.close()
        self._facts: dict[str, Any] = self._receive()

    def once(self) -> Run:
        run: Run = self._ask("run")
        return run

    def measurement(self, runs: list[Run]) -> Measurement:
        """The result, with the peaks so far."""
        return Measurement(runs=runs, **self._facts, **self._ask("memory"))

    def _ask(self, request: str) -> Any:
        with suppress(BrokenPipeError):  # of a process that has ended: what it said last is read below
            self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
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
        load_seconds = time.perf_counter() - start
        facts = {"pictures": contender.pictures, "tokens": contender.tokens, "backend": contender.backend}
        connection.send({"load_seconds": load_seconds, "flops": dict(contender.flops), **facts})
        while True:
            connection.send(_run(contender) if connection.recv() == "run" else _peaks(contender))
    except (EOFError, KeyboardInterrupt):
        return
    except HartError as error:
        connection.send(error)
    except Exception as error:  # a contender's own library: the other side says which contender it was and goes on
        traceback.print_exc()
        connection.send(HartError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))


def _run(contender: Contender) -> Run:
    """Stages are timed to the end of their work, which no application waits for: on a device, the whole run is another one."""
    times = StageTimes(contender.wait)
    seconds = [] if contender.wait is nothing_to_wait_for else [_seconds(contender, StageTimes())]
    seconds.append(_seconds(contender, times))
    return Run(times.seconds, seconds[0])


def _seconds(contender: Contender, times: StageTimes) -> float:
    start = time.perf_counter()
    contender.once(times)
    contender.wait()  # or what is left of this run would be timed with the next one
    return time.perf_counter() - start


def _peaks(contender: Contender) -> dict[str, int | None]:
    return {"peak_memory_bytes": peak_memory(), "peak_device_bytes": contender.device_memory()}


def job_of(prompt: str, batch: int, options: Options) -> Job:
    """The same prompt `batch` times, seeds 0, 1, …."""
    return Job((prompt,) * batch, tuple(range(batch)), options)
