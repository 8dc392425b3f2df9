"""Puts all findings together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .abilities import Ability, choose, look_at_abilities
from .gpu import GpuState, look_at_gpus
from .machine import Disk, Model, System, look_at_disks, look_at_model, look_at_system
from .packages import Package, all_packages


@dataclass(frozen=True)
class Report:
    """What `hart-edge doctor` shows. auto: the backend that `auto` takes, None if the core install itself is broken."""

    system: System
    packages: list[Package]
    gpu: GpuState
    disks: list[Disk]
    model: Model
    abilities: list[Ability]
    auto: str | None

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; sizes in bytes."""
        facts = asdict(self)
        for entry, package in zip(facts["packages"], self.packages, strict=True):
            entry["fits"] = package.fits
        for entry, ability in zip(facts["abilities"], self.abilities, strict=True):
            entry["works"] = ability.works
        return facts


def diagnose() -> Report:
    """Look at everything. Opens every backend that may work and one engine of the bundled model in it; draws nothing."""
    gpu, model = look_at_gpus(), look_at_model()
    folder = Path(model.folder) if model.usable else None
    abilities = look_at_abilities(gpu, folder)
    return Report(look_at_system(), all_packages(), gpu, look_at_disks(), model, abilities, choose(abilities, folder))
