"""Measures a contender in a process of its own: seconds per stage, tokens per second, peak memory."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .options import Options
from .pipeline import Pipeline
from .timing import StageTimes, peak_memory


@dataclass(frozen=True)
class Job:
    """What is run: prompts with one seed each, settings, counted runs after one warm-up."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    options: Options
    runs: int


@dataclass(frozen=True)
class Measurement:
    """Result of one contender.

    Attributes:
        load_seconds: from the call to ready.
        stages: median seconds per stage over the runs.
        totals: seconds of every counted run.
        tokens: image tokens of one run, all scales and pictures.
        peak_memory_bytes: largest resident size of the process.
    """

    load_seconds: float
    stages: dict[str, float]
    totals: list[float]
    tokens: int
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        """Median of a run."""
        return statistics.median(self.totals)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": self.seconds, "tokens_per_second": self.tokens / self.seconds}


Load = Callable[[], tuple[Callable[[StageTimes], None], int]]


def repeat(load: Load, runs: int) -> Measurement:
    """Load, warm up once, run `runs` times. `load` returns the function of one run and its token count."""
    start = time.perf_counter()
    once, tokens = load()
    loaded = time.perf_counter() - start
    once(StageTimes())
    samples = []
    for _ in range(runs):
        times = StageTimes()
        once(times)
        samples.append(times)
    stages = {stage: statistics.median(sample.seconds[stage] for sample in samples) for stage in samples[0].seconds}
    return Measurement(loaded, stages, [sample.total for sample in samples], tokens, peak_memory())


def measure_bundle(bundle: Path, backend: str, job: Job) -> Measurement:
    """The runtime on a bundle."""

    def load() -> tuple[Callable[[StageTimes], None], int]:
        pipe = Pipeline.open(Bundle(bundle, check_files=False), backend=backend)
        tokens = sum(p * p for p in pipe.spec.patch_nums) * len(job.prompts)
        return lambda times: _generate(pipe, job, times), tokens

    return repeat(load, job.runs)


def in_own_process(function: Callable[..., Measurement], arguments: Sequence[Any]) -> Measurement:
    """Call a picklable function in a fresh process, so that peak memory and thread pools are its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _generate(pipe: Pipeline, job: Job, times: StageTimes) -> None:
    pipe.generate_batch(job.prompts, seeds=job.seeds, options=job.options, times=times)
