"""How much each group of products costs when it alone is quantised, and which groups therefore keep more bits.

Every group is quantised on its own and a recorded run is replayed (replay.py). Then all groups together: while the whole exceeds
its limits (`export/verify/gates.py`), the group that costs most falls back to the scheme's gentler treatment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hart_edge.export.verify.gates import QUANTIZATION, Gate
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.pipeline import Pipeline

from .collect import Progress
from .material import Material
from .products import Product
from .replay import Damage, Recorded, replay
from .schemes import TREATMENTS, Scheme, Treatment

ALONE = 2
"""Prompts that a group on its own is judged by."""

Score = Callable[[Pipeline], float]
"""Share of right pictures that a pipeline draws."""


@dataclass(frozen=True)
class Row:
    """One group, quantised alone.

    Attributes:
        group: its name.
        treatment: that it was given, by name.
        weights: how many numbers its weights have.
        damage: against the float engines.
        score: share of right pictures; None where none were drawn.
    """

    group: str
    treatment: str
    weights: int
    damage: Damage
    score: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """Result of the pass.

    Attributes:
        scheme: its name.
        rows: every group; empty where the whole passed at once and nobody asked for them.
        choice: treatment by group, by name.
        total: damage of the choice.
        float_score: share of right pictures of the float engines.
        limits: that the total must keep, as text.
    """

    scheme: str
    rows: tuple[Row, ...]
    choice: dict[str, str]
    total: Damage
    float_score: float | None
    limits: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def treatments(self) -> dict[str, Treatment]:
        """The choice, as treatments."""
        return {group: TREATMENTS[name] for group, name in self.choice.items()}


def measure(material: Material, scheme: Scheme, recorded: Sequence[Recorded], score: Score | None, progress: Progress) -> list[Row]:
    """Quantise every group alone and replay the recording."""
    rows, groups = [], material.groups
    for done, (group, products) in enumerate(groups.items()):
        progress(f"sensitivity of {group}", done, len(groups))
        treatment = scheme.engines[products[0].engine]
        with material.pipeline({group: treatment}) as (pipe, changed):
            weights = sum(math.prod(product.shape) for product in products)
            damage, right = replay(pipe, recorded, changed), None if score is None else score(pipe)
            rows.append(Row(group, treatment.name, weights, damage, right))
    return rows


def judged(recorded: Sequence[Recorded]) -> Sequence[Recorded]:
    """Those that single groups are judged by: a few, which order the groups as well and take less time."""
    return recorded[:ALONE]


def decide(
    material: Material, scheme: Scheme, recorded: Sequence[Recorded], rows: list[Row], progress: Progress
) -> tuple[dict[str, Treatment], Damage, list[Row]]:
    """The treatment of every group, the damage of all together, and the rows, measured where they were needed.

    The costliest group falls back by one step of the scheme, and its cost is taken anew: as often as it takes for the sum of all
    costs to be small enough, then on until the replay of the whole keeps the limits.
    """
    steps = {group: list(scheme.steps(products[0].engine)) for group, products in material.groups.items()}
    choice = {group: own.pop(0) for group, own in steps.items()}
    total = _replay_all(material, choice, recorded)
    if keeps(total, scheme):
        return choice, total, rows
    rows = rows or measure(material, scheme, judged(recorded), None, progress)
    damages = {row.group: row.damage for row in rows}
    while not keeps(total, scheme) and any(steps.values()):
        progress("choosing", len(rows) - sum(map(bool, steps.values())), len(rows))
        worst = max((group for group, left in steps.items() if left), key=lambda group: cost(damages[group], scheme))
        choice[worst] = steps[worst].pop(0)
        damages[worst] = _alone(material, worst, choice[worst], judged(recorded))
        if _expected(list(damages.values()), scheme) <= 1:
            total = _replay_all(material, choice, recorded)
    return choice, total, rows


def _alone(material: Material, group: str, treatment: Treatment, recorded: Sequence[Recorded]) -> Damage:
    with material.pipeline({group: treatment}) as (pipe, changed):
        return replay(pipe, recorded, changed)


def _replay_all(material: Material, choice: Mapping[str, Treatment], recorded: Sequence[Recorded]) -> Damage:
    with material.pipeline(choice) as (pipe, changed):
        return replay(pipe, recorded, changed)


def cost(damage: Damage, scheme: Scheme) -> float:
    """The largest share of any limit that a damage takes."""
    return _expected([damage], scheme)


def _expected(damages: Sequence[Damage], scheme: Scheme) -> float:
    """The largest share of any limit that all together take, if their damages add up, which they do roughly."""
    shares = [[share for _, _, share in _shares(damage, scheme)] for damage in damages]
    return max((sum(column) for column in zip(*shares, strict=True)), default=0.0)


def keeps(damage: Damage, scheme: Scheme) -> bool:
    """Whether all limits of the scheme hold."""
    return all(gate.allows(value) for value, gate, _ in _shares(damage, scheme))


def _shares(damage: Damage, scheme: Scheme) -> list[tuple[float, Gate, float]]:
    """Value, gate and the share of the gate that is used up, for every limit."""
    gates = QUANTIZATION[scheme.precision]
    kl, cosine, psnr = gates["logits KL"], gates["logits cosine"], gates["picture PSNR dB"]
    return [
        (max(damage.kl), kl, max(damage.kl) / kl.limit),
        (min(damage.cosine), cosine, (1 - min(damage.cosine)) / (1 - cosine.limit)),
        (damage.psnr, psnr, 10 ** ((psnr.limit - damage.psnr) / 10)),
    ]


def limits_of(scheme: Scheme) -> dict[str, str]:
    return {name: str(gate) for name, gate in QUANTIZATION[scheme.precision].items()}


def read_choice(path: Path, scheme: Scheme, groups: Mapping[str, Sequence[Product]]) -> dict[str, Treatment]:
    """The choice of a sensitivity file; InputError when it was made for another scheme or model."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, choice = str(content["scheme"]), {str(g): TREATMENTS[str(name)] for g, name in content["choice"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no sensitivity file: {type(error).__name__}: {error}.", "Make one: hart-edge sensitivity.") from error
    if found != scheme.name or set(choice) != set(groups):
        what = f"scheme {found}" if found != scheme.name else f"another model: group {min(set(choice) ^ set(groups))}"
        raise InputError(f"{path} is for {what}; expected scheme {scheme.name} and the groups of this bundle.", "Make it again.")
    for group, treatment in choice.items():
        possible = scheme.steps(groups[group][0].engine)
        if treatment not in possible:
            names = ", ".join(one.name for one in possible)
            raise InputError(f"{path}: group {group} is to be {treatment.name}; scheme {scheme.name} knows {names} there.", "Correct it.")
    return choice
