"""What a picture of the shapes data set holds, and what its caption claims.

Positions and radii are fractions of the picture's side, x to the right and y downward. Knows nothing of pixels or words.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from hart_edge.runtime.errors import InputError

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "orange": (250, 140, 20),
    "yellow": (246, 214, 30),
    "green": (38, 158, 62),
    "cyan": (20, 192, 204),
    "blue": (36, 84, 220),
    "purple": (128, 44, 168),
    "pink": (246, 112, 180),
}
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below", "inside")
BACKGROUNDS = ("plain", "gradient", "striped", "dotted", "mottled")
MAX_ITEMS = 4
SIZE_LIMIT = 0.115  # radius between small (at most 0.105) and large (at least 0.129); inside another, small is less than half of it


def _require(value: object, allowed: object, what: str) -> None:
    """Raise unless `value` is one of `allowed`."""
    if value not in allowed:  # type: ignore[operator]
        raise InputError(f"{what} is {value!r}; expected one of {', '.join(map(str, allowed))}.")  # type: ignore[call-overload]


@dataclass(frozen=True)
class Item:
    """One object: centre (x, y) and radius of the circle around it, in picture sides; rotation in radians."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0

    def __post_init__(self) -> None:
        _require(self.shape, SHAPES, "An item's shape")
        _require(self.colour, COLOURS, "An item's colour")
        _require(self.size, SIZES, "An item's size")


@dataclass(frozen=True)
class Background:
    """A pale ground: `kind` mixes `tone` with `tone2` (RGB, 0..1).

    `frequency` counts periods per side, `angle` and `phase` are in radians, `seed` fixes the noise of `mottled`.
    """

    kind: str = "plain"
    tone: tuple[float, float, float] = (0.93, 0.93, 0.92)
    tone2: tuple[float, float, float] = (0.86, 0.86, 0.86)
    frequency: float = 20.0
    angle: float = 0.0
    phase: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.kind, BACKGROUNDS, "A background's kind")


@dataclass(frozen=True)
class Scene:
    """Items by group, the first group first; an earlier item is drawn over a later one."""

    items: tuple[Item, ...]
    relation: str | None = None
    background: Background = Background()

    def __post_init__(self) -> None:
        if not 1 <= len(self.items) <= MAX_ITEMS:
            raise InputError(f"A scene has {len(self.items)} items; expected 1 to {MAX_ITEMS}.")
        if self.relation is not None:
            _require(self.relation, RELATIONS, "A scene's relation")


@dataclass(frozen=True)
class Group:
    """`count` equal objects, as a caption names them; `size` is None where it does not say."""

    count: int
    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True)
class Spec:
    """What a caption claims: one or two groups, and how the first stands to the second."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if self.relation is not None and len(self.groups) != 2:
            raise InputError(f"The relation {self.relation!r} joins {len(self.groups)} groups; expected 2.")

    def without_sizes(self) -> Spec:
        """The same claims with every size left open."""
        return Spec(tuple(Group(g.count, g.colour, g.shape) for g in self.groups), self.relation)


def spec_of(scene: Scene) -> Spec:
    """Everything a caption of `scene` may claim, sizes included."""
    kinds = groupby(scene.items, key=lambda item: (item.colour, item.shape, item.size))
    groups = tuple(Group(len(list(items)), *kind) for kind, items in kinds)
    return Spec(groups, scene.relation)
