"""Scores what a picture holds against what its caption claims, GenEval style.

    score(read(image), spec)

`read` is re-exported here: the judge is these two functions. Sizes and backgrounds are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from hart_edge.export.shapes.reading import Found, read
from hart_edge.export.shapes.scene import Group, Spec

__all__ = ["Found", "Score", "read", "score"]

MOST_OBJECTS = 8  # a picture with more is wrong in any case; the assignment looks at the largest
MISCOUNT = 0.4  # cost of a missing or surplus object beside 1 for a wrong colour or shape
MARGIN = 0.05  # least distance between the groups' mean centres along a relation's axis, in picture sides
AXES = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}  # (axis, sign)


@dataclass(frozen=True)
class Score:
    """What is right: every claimed colour and no other; likewise the shapes; the groups' counts; the relation (None: not
    claimed); and all of it with each colour on its own shape."""

    colour: bool
    shape: bool
    count: bool
    relation: bool | None
    all_correct: bool


def score(found: Sequence[Found], spec: Spec) -> Score:
    """Scores the objects of one picture; every object is first assigned to the group that it fits best."""
    groups = spec.groups
    colour = {item.colour for item in found} == {group.colour for group in groups}
    shape = {item.shape for item in found} == {group.shape for group in groups}
    owners = _assign(found[:MOST_OBJECTS], groups)
    members = [[item for item, owner in zip(found, owners, strict=False) if owner == g] for g in range(len(groups))]
    count = len(found) <= MOST_OBJECTS and all(len(m) == group.count for m, group in zip(members, groups, strict=True))
    relation = None if spec.relation is None else _holds(spec.relation, *members)
    bound = all(_misfit(item, group) == 0 for m, group in zip(members, groups, strict=True) for item in m)
    return Score(colour, shape, count, relation, colour and shape and count and bound and relation is not False)


def _assign(found: Sequence[Found], groups: Sequence[Group]) -> tuple[int, ...]:
    """The group of every object, by the least total of wrong attributes and wrong counts."""

    def cost(owners: tuple[int, ...]) -> float:
        wrong = sum(_misfit(item, groups[g]) for item, g in zip(found, owners, strict=True))
        return wrong + MISCOUNT * sum(abs(owners.count(g) - group.count) for g, group in enumerate(groups))

    return min(product(range(len(groups)), repeat=len(found)), key=cost)


def _misfit(item: Found, group: Group) -> float:
    """Attributes of `item` that differ from the group's; the colour weighs a little more, which settles ties."""
    return 1.01 * (item.colour != group.colour) + (item.shape != group.shape)


def _holds(relation: str, first: Sequence[Found], second: Sequence[Found]) -> bool:
    """Whether every object of `first` stands in `relation` to every one of `second`."""
    if not first or not second:
        return False
    if relation == "inside":
        return all(_inside(a, b) for a in first for b in second)
    axis, sign = AXES[relation]
    here, there = ([sign * (item.x, item.y)[axis] for item in items] for items in (first, second))
    return max(here) < min(there) and sum(there) / len(there) - sum(here) / len(here) >= MARGIN


def _inside(inner: Found, outer: Found) -> bool:
    """Whether at least most of `inner` lies within the circle around `outer`."""
    return math.hypot(inner.x - outer.x, inner.y - outer.y) + 0.8 * inner.radius <= outer.radius
