"""What survives a command: the state of a training run, its log, and the time it has used.

A run folder holds `state.pt` (replaced in one step) and `log.jsonl` (one line per report).
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hart_edge.runtime.errors import CheckpointError
from hart_edge.runtime.files import writable

STATE_KEYS = frozenset({"stage", "settings", "step", "elapsed", "trainer"})


@dataclass
class Budget:
    """Time of a stage over all its commands, or an exact number of steps.

    Args:
        minutes: training time of the whole stage; the learning rate follows it.
        session: wall-clock minutes of this command, from `started` on, its start-up and compilation included.
        steps: when given, the stage is this many steps long and `minutes` does not count.
    """

    minutes: float
    session: float
    steps: int | None = None
    elapsed: float = 0.0  # seconds of training so far, over all commands
    started: float = field(default_factory=time.monotonic)
    _last: float | None = None

    def tick(self) -> None:
        """Count the time since the tick before; the first one only starts the clock."""
        now = time.monotonic()
        self.elapsed += 0.0 if self._last is None else now - self._last
        self._last = now

    def progress(self, step: int) -> float:
        """0 at the start of the stage, 1 at its end."""
        done = self.elapsed / (60 * self.minutes) if self.steps is None else step / self.steps
        return min(1.0, done)

    def session_over(self) -> bool:
        return time.monotonic() - self.started >= 60 * self.session


class RunFolder:
    """Folder of one stage's run."""

    def __init__(self, path: Path, stage: str, settings: Mapping[str, Any]) -> None:
        self.path, self.stage, self.settings = path, stage, dict(settings)
        path.mkdir(parents=True, exist_ok=True)

    @property
    def state_file(self) -> Path:
        return self.path / "state.pt"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def save(self, step: int, budget: Budget, trainer: dict[str, Any]) -> None:
        state = {"stage": self.stage, "settings": self.settings, "step": step, "elapsed": budget.elapsed, "trainer": trainer}
        with writable(self.state_file) as temporary:
            torch.save(state, temporary)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None for a new run; CheckpointError when it is damaged or of another run."""
        if not self.state_file.exists():
            return None
        state = read_state(self.state_file)
        if state["stage"] != self.stage:
            raise CheckpointError(f"{self.path} holds a run of stage {state['stage']!r}, not {self.stage!r}.", "Give another --out.")
        differing = [key for key, value in self.settings.items() if state["settings"].get(key) != value]
        if differing:
            was = {key: state["settings"].get(key) for key in differing}
            now = {key: self.settings[key] for key in differing}
            raise CheckpointError(f"{self.path} was started with {was}, now {now}.", "Use the same settings or another --out.")
        self._forget_after(state["step"])
        return state

    def log(self, row: Mapping[str, float]) -> None:
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def _forget_after(self, step: int) -> None:
        """Drop log lines of steps that the saved state does not know: they will be run again."""
        rows = [row for row in read_log(self.log_file) if row["step"] <= step] if self.log_file.exists() else []
        with writable(self.log_file) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_state(path: Path) -> dict[str, Any]:
    """A `state.pt`, weights-only, on the CPU."""
    remedy = "Delete it to start the stage again."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as a training state: {reason}.", remedy) from error
    if not isinstance(state, dict) or set(state) != STATE_KEYS:
        found = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is no training state: found {found}, expected {sorted(STATE_KEYS)}.", remedy)
    return state


def read_log(path: Path) -> list[dict[str, float]]:
    """Rows of a `log.jsonl`; a last line that was cut off is left out."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.", "Give the --out folder of a training stage.")
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise CheckpointError(f"{path} line {number} is not JSON: {line[:40]!r}.", "Remove that line.") from error
    return rows
