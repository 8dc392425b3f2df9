"""The loop that both stages share: time, reports, saving, resuming. Knows nothing of what is trained."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from hart_edge.runtime.errors import HartError

from .data import Batch
from .graphs import Metrics
from .state import Budget, RunFolder

REPORT_SECONDS = 10.0
SAVE_SECONDS = 100.0
EVALUATE_SECONDS = 60.0


class Trainer(Protocol):
    def prepare(self, batches: Iterator[Batch]) -> None:
        """Take what is needed before the first step of a session."""

    def step(self, batch: Batch, step: int, progress: float) -> Metrics:
        """One update; scalar tensors to report, `loss` among them, left on the device."""

    def evaluate(self) -> dict[str, float]:
        """Measures of the averaged weights on held-out data."""

    def export(self, folder: Path) -> None:
        """Write the stage's part of a checkpoint, averaged weights."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class _Every:
    """True once per `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True


class _Means:
    """Running means of the metrics since the last report; waiting for data is counted beside them."""

    def __init__(self) -> None:
        self.sums: Metrics = {}
        self.count, self.waited, self.since = 0, 0.0, time.monotonic()

    def add(self, metrics: Metrics) -> None:
        self.count += 1
        for key, value in metrics.items():
            self.sums[key] = self.sums[key] + value.detach() if key in self.sums else value.detach()

    def row(self) -> dict[str, float]:
        spent = time.monotonic() - self.since
        means = {key: float(value) / self.count for key, value in self.sums.items()}
        return means | {"steps_per_s": self.count / spent, "data_share": self.waited / spent}


def train(trainer: Trainer, open_stream: Callable[[int], Iterator[Batch]], folder: RunFolder, budget: Budget) -> int:
    """Run until the stage is complete or the session's time is over; returns the number of steps done in all.

    open_stream: gives the batches from a step on. SIGTERM ends the session as its time would.
    """
    saved = folder.load()
    step = 0
    if saved is not None:
        trainer.load_state(saved["trainer"])
        step, budget.elapsed = saved["step"], saved["elapsed"]
        print(f"resumed at step {step}, {budget.elapsed / 60:.1f} min of training done", flush=True)
    if budget.progress(step) >= 1:
        print("the stage is complete", flush=True)
        return step
    stop = _stop_on_sigterm()
    step = _steps(trainer, open_stream(step), folder, budget, step, stop)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    _report(folder, step, budget, trainer.evaluate())
    folder.save(step, budget, trainer.state())
    return step


def _steps(trainer: Trainer, batches: Iterator[Batch], folder: RunFolder, budget: Budget, step: int, stop: list[int]) -> int:
    trainer.prepare(batches)
    report, save, evaluate, means = _Every(REPORT_SECONDS), _Every(SAVE_SECONDS), _Every(EVALUATE_SECONDS), _Means()
    while budget.progress(step) < 1 and not budget.session_over() and not stop:
        before = time.monotonic()
        batch = next(batches)
        means.waited += time.monotonic() - before
        metrics = trainer.step(batch, step, budget.progress(step))
        means.add(metrics)
        step += 1
        budget.tick()  # the first step, which compiles, is not counted
        if report():
            row, means = means.row(), _Means()
            _check_finite(row["loss"], step)
            _report(folder, step, budget, row | (trainer.evaluate() if evaluate() else {}))
        if save():
            _check_finite(float(metrics["loss"].detach()), step)
            folder.save(step, budget, trainer.state())
    if means.count:
        _check_finite(means.row()["loss"], step)
        _report(folder, step, budget, means.row())
    return step


def _report(folder: RunFolder, step: int, budget: Budget, row: dict[str, float]) -> None:
    row = {"step": step, "seconds": round(budget.elapsed, 1), "progress": round(budget.progress(step), 4)} | row
    folder.log(row)
    print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()), flush=True)


def _check_finite(loss: float, step: int) -> None:
    """A run that has diverged is not saved over a good one."""
    if not math.isfinite(loss):
        raise HartError(f"the loss is {loss} at step {step}.", "Lower --lr; the run resumes from its last saved state.")


def _stop_on_sigterm() -> list[int]:
    """A list that a SIGTERM makes true; off the main thread nothing is installed."""
    received: list[int] = []
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    return received
