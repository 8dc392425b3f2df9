"""Draws scenes: what is in them, then where it stands.

Held-out combinations are those a training scene never contains: about one (count, colour, shape) in ten, where the count
is the group's. Each colour of a shape is trained in other counts. Knows nothing of pixels or words.
"""

from __future__ import annotations

import math

import numpy as np

from hart_edge.export.shapes.scene import BACKGROUNDS, COLOURS, MAX_ITEMS, SHAPES, Background, Group, Item, Scene, Spec

HELD_OUT = frozenset(
    (count, colour, shape)
    for count in range(1, MAX_ITEMS + 1)
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
    if (count + 3 * i + 5 * j) % 10 == 0
)
CONTAINERS = ("ring", "circle", "square")  # shapes that another one can lie inside or upon
SIDEWAYS = ("left of", "right of", "above", "below")
INSIDE_TRAINED, INSIDE_HELD_OUT = 0.25, 0.1  # shares of scenes with one object inside another: the hardest to learn

EDGE = 0.03  # least distance from a circle around an item to the picture's edge
GAP = 0.04  # least distance between two such circles
RELATION_MARGIN = 0.16  # least distance between centres along the relation's axis
JITTER = 0.06  # farthest an item lies from its slot along an axis; twice that when it is alone
BANDS = (0.27, 0.73)  # where the two groups of a scene stand along their relation's axis
ROWS = {1: (0.5,), 2: (0.29, 0.71), 3: (0.19, 0.5, 0.81)}  # and across it, by count
ALONE: dict[int, tuple[tuple[float, float], ...]] = {  # slots (x, y) of a scene's only group, by count
    1: ((0.5, 0.5),),
    2: ((0.29, 0.5), (0.71, 0.5)),
    3: ((0.5, 0.29), (0.29, 0.7), (0.71, 0.7)),
    4: ((0.29, 0.29), (0.71, 0.29), (0.29, 0.71), (0.71, 0.71)),
}
TONES = (
    (0.96, 0.96, 0.95),
    (0.90, 0.90, 0.90),
    (0.82, 0.82, 0.82),
    (0.95, 0.93, 0.88),
    (0.88, 0.91, 0.94),
    (0.89, 0.93, 0.89),
    (0.93, 0.89, 0.92),
)


def is_held_out(group: Group) -> bool:
    """Whether a training scene must not contain this group."""
    return (group.count, group.colour, group.shape) in HELD_OUT


def sample_scene(rng: np.random.Generator, held_out: bool = False, inside: float | None = None) -> Scene:
    """One scene of 1 to 4 objects; with `held_out` it has at least one held-out group, without it none.

    inside: about which share has one object inside another; None: as usual, INSIDE_HELD_OUT or INSIDE_TRAINED.
    """
    if inside is None:
        inside = INSIDE_HELD_OUT if held_out else INSIDE_TRAINED
    while True:
        spec = _sample_spec(rng, inside)
        if any(is_held_out(group) for group in spec.groups) != held_out:
            continue
        items = _place(spec, rng)
        if items is not None:
            return Scene(items, spec.relation, _sample_background(rng))


def _sample_spec(rng: np.random.Generator, inside: float) -> Spec:
    """A share `inside` has one object inside another. Of the rest a third has one group, a sixth two groups joined by
    "and", and one half two groups side by side or one above the other."""
    if rng.random() < inside:
        return _sample_inside(rng)
    kind = rng.integers(6)
    if kind < 2:
        return Spec((_sample_group(rng, int(rng.integers(1, MAX_ITEMS + 1))),))
    relation = None if kind == 2 else SIDEWAYS[rng.integers(4)]
    while True:
        first = _sample_group(rng, int(rng.integers(1, MAX_ITEMS)))
        second = _sample_group(rng, int(rng.integers(1, MAX_ITEMS - first.count + 1)))
        if (first.colour, first.shape) != (second.colour, second.shape):
            return Spec((first, second), relation)


def _sample_group(rng: np.random.Generator, count: int, size: str | None = None) -> Group:
    colour, shape, large = rng.integers((len(COLOURS), len(SHAPES), 2)).tolist()
    return Group(count, tuple(COLOURS)[colour], SHAPES[shape], size or ("large" if large else "small"))


def _sample_inside(rng: np.random.Generator) -> Spec:
    """One object in the hole of a ring, or upon a circle or square, of another colour."""
    inner, outer = _sample_group(rng, 1, "small"), _sample_group(rng, 1, "large")
    outer = Group(1, outer.colour, CONTAINERS[rng.integers(3)], "large")
    return _sample_inside(rng) if inner.colour == outer.colour else Spec((inner, outer), "inside")


def _place(spec: Spec, rng: np.random.Generator) -> tuple[Item, ...] | None:
    """Items of `spec` near their slots and without overlap, or None when the draw did not fit."""
    if spec.relation == "inside":
        return _place_inside(spec, rng)
    total = sum(group.count for group in spec.groups)
    reach = JITTER if total > 1 else 2 * JITTER
    items: list[Item] = []
    for index, group in enumerate(spec.groups):
        radius = _sample_radius(group, rng)
        for slot in _slots(spec, index):
            item = _place_one(items, group, radius, slot, reach, rng)
            if item is None:
                return None
            items.append(item)
    return tuple(items)


def _slots(spec: Spec, index: int) -> list[tuple[float, float]]:
    """Where the items of group `index` stand, (x, y). Two groups without a relation stand as if left and right.

    What a caption leaves open varies little, because HART draws all tokens of a scale independently of each other: a
    layout that they would have to agree upon without having been told comes out mixed (see README).
    """
    count = spec.groups[index].count
    if len(spec.groups) == 1:
        return list(ALONE[count])
    before = (spec.relation in ("left of", "above", None)) == (index == 0)
    along = BANDS[0] if before else BANDS[1]
    upright = spec.relation in ("above", "below")
    return [(across, along) if upright else (along, across) for across in ROWS[count]]


def _sample_radius(group: Group, rng: np.random.Generator) -> float:
    """A radius of the group's size; large objects are smaller where there are many."""
    if group.size == "small":
        return float(rng.uniform(0.09, 0.105))
    return float(rng.uniform(0.135, (0.2, 0.18, 0.145, 0.17)[group.count - 1]))


def _place_one(
    items: list[Item], group: Group, radius: float, slot: tuple[float, float], reach: float, rng: np.random.Generator
) -> Item | None:
    """An item at a free place within `reach` of `slot`, or None after 40 tries."""
    radius *= rng.uniform(0.96, 1.0)
    low, high = radius + EDGE, 1 - radius - EDGE
    left, top = (max(v - reach, low) for v in slot)
    right, bottom = (min(v + reach, high) for v in slot)
    for u, v in rng.random((40, 2)).tolist():
        x, y = left + u * (right - left), top + v * (bottom - top)
        if all(math.hypot(x - other.x, y - other.y) >= radius + other.radius + GAP for other in items):
            return _item(group, x, y, radius, rng)
    return None


def _place_inside(spec: Spec, rng: np.random.Generator) -> tuple[Item, ...]:
    """An item in the middle of one two and a half times as large, with a gap to the edge of a ring's hole."""
    inner, outer = spec.groups
    radius, small = rng.uniform(0.37, 0.40), rng.uniform(0.14, 0.152)
    x, y = rng.uniform(0.5 - JITTER / 3, 0.5 + JITTER / 3, size=2).tolist()
    return _item(inner, x, y, small, rng), _item(outer, x, y, radius, rng)


def _item(group: Group, x: float, y: float, radius: float, rng: np.random.Generator) -> Item:
    return Item(group.shape, group.colour, str(group.size), x, y, float(radius), float(rng.uniform(-0.15, 0.15)))


def _sample_background(rng: np.random.Generator) -> Background:
    """A pale ground whose second tone is a little darker than its first."""
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    shift = float(rng.uniform(-0.02, 0.02))
    tone = tuple(v + shift for v in TONES[rng.integers(len(TONES))])
    depth = rng.uniform(0.08, 0.16) if kind == "gradient" else rng.uniform(0.05, 0.09)
    frequency, angle, phase = rng.uniform((14.0, 0.0, 0.0), (26.0, math.pi, 2 * math.pi)).tolist()
    return Background(kind, tone, tuple(v * (1 - depth) for v in tone), frequency, angle, phase, int(rng.integers(2**31)))
