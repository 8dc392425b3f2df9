"""What a caption claims, as numbers: targets for a text encoder that has to learn to read."""

from __future__ import annotations

from hart_edge.export.shapes.scene import COLOURS, MAX_ITEMS, RELATIONS, SHAPES, SIZES, Group, Spec

GROUP_SIZES = (MAX_ITEMS + 1, len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)  # 0: not claimed
CLAIM_SIZES = (len(RELATIONS) + 1, *GROUP_SIZES, *GROUP_SIZES)


def claims_of(spec: Spec) -> list[int]:
    """Relation, then count, colour, shape and size of the first group and of the second; each below its CLAIM_SIZES, 0 for none."""
    groups = [_group(group) for group in spec.groups] + [[0] * len(GROUP_SIZES)] * (2 - len(spec.groups))
    return [_index(RELATIONS, spec.relation), *groups[0], *groups[1]]


def _group(group: Group) -> list[int]:
    return [group.count, _index(tuple(COLOURS), group.colour), _index(SHAPES, group.shape), _index(SIZES, group.size)]


def _index(names: tuple[str, ...], name: str | None) -> int:
    return 0 if name is None else 1 + names.index(name)
