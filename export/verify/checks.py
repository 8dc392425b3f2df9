"""One measured value with its gate, and the report that collects them. Knows nothing of models."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from .gates import Gate


@dataclass(frozen=True)
class Check:
    """One figure.

    Attributes:
        stage: what was measured: an engine, "reference", "sampling", "files".
        mode: "files", "weights", "recording", "teacher-forced" or "free-running".
        metric: name of the figure.
        where: scale, step or tensor; empty when there is only one.
        value: the figure.
        gate: its limit; None for information only.
    """

    stage: str
    mode: str
    metric: str
    where: str
    value: float
    gate: Gate | None = None

    @property
    def passed(self) -> bool:
        return self.gate is None or self.gate.allows(self.value)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, self.mode, self.metric

    def to_json(self) -> dict[str, Any]:
        value = self.value if math.isfinite(self.value) else str(self.value)
        return asdict(self) | {"value": value, "gate": None if self.gate is None else str(self.gate), "passed": self.passed}


@dataclass
class Report:
    """All checks of one verification."""

    title: str
    checks: list[Check] = field(default_factory=list)
    backend: str = ""  # what the engines ran on

    def add(self, stage: str, mode: str, metric: str, value: float, gate: Gate | None = None, where: str = "") -> None:
        self.checks.append(Check(stage, mode, metric, where, value, gate))

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def worst(self) -> list[Check]:
        """One check per stage, mode and metric: a failed one if there is any, else the one nearest its gate."""
        grouped: dict[tuple[str, str, str], Check] = {}
        for check in self.checks:
            held = grouped.get(check.key)
            if held is None or (check.gate is not None and held.passed and (not check.passed or check.gate.worse(check.value, held.value))):
                grouped[check.key] = check
        return list(grouped.values())

    def failed_stages(self) -> list[str]:
        return list(dict.fromkeys(check.stage for check in self.failures()))

    def table(self) -> Table:
        """Rich table of the worst check of every stage, mode and metric."""
        table = Table(title=self.title, title_justify="left")
        for column in ("stage", "mode", "metric"):
            table.add_column(column)
        for column in ("worst", "gate"):
            table.add_column(column, justify="right")
        table.add_column("where")
        table.add_column("")
        for check in self.worst():
            mark = "" if check.gate is None else "[green]pass[/]" if check.passed else "[red bold]FAIL[/]"
            table.add_row(check.stage, check.mode, check.metric, f"{check.value:.6g}", str(check.gate or ""), check.where, mark)
        return table

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "failed_stages": self.failed_stages(), "checks": [check.to_json() for check in self.checks]}
