"""Sampled scenes: what may be in them, where it may stand, and that a seed fixes them."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from hart_edge.export.shapes.distance import RING_HOLE
from hart_edge.export.shapes.sampler import EDGE, GAP, HELD_OUT, RELATION_MARGIN, is_held_out, sample_scene
from hart_edge.export.shapes.scene import COLOURS, RELATIONS, SHAPES, SIZE_LIMIT, Group, Item, Scene, Spec, spec_of
from hart_edge.runtime.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(10_000)]


def test_training_scenes_hold_no_held_out_combination(scenes: list[Scene]) -> None:
    assert not any(is_held_out(group) for scene in scenes for group in spec_of(scene).groups)


def test_held_out_scenes_always_hold_one() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        assert any(is_held_out(group) for group in spec_of(sample_scene(rng, held_out=True)).groups)


def test_held_out_share_is_about_a_tenth() -> None:
    assert 0.08 <= len(HELD_OUT) / (4 * len(COLOURS) * len(SHAPES)) <= 0.12


def test_every_colour_of_a_shape_is_trained_in_most_counts() -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            assert sum(is_held_out(Group(count, colour, shape)) for count in range(1, 5)) <= 1


def test_everything_else_occurs(scenes: list[Scene]) -> None:
    specs = [spec_of(scene) for scene in scenes]
    seen = {(group.colour, group.shape) for spec in specs for group in spec.groups}
    assert len(seen) == len(COLOURS) * len(SHAPES)
    assert {spec.relation for spec in specs} == {None, *RELATIONS}
    assert {len(scene.items) for scene in scenes} == {1, 2, 3, 4}


def test_the_readme_prompt_is_a_training_scene() -> None:
    assert not is_held_out(Group(2, "red", "circle"))
    assert not is_held_out(Group(1, "blue", "square"))


def test_items_stay_inside_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes[:3000]:
        for item in scene.items:
            assert item.radius + EDGE <= min(item.x, item.y, 1 - item.x, 1 - item.y) + 1e-9
        if scene.relation == "inside":
            inner, outer = scene.items
            assert (inner.size, outer.size) == ("small", "large")
            assert inner.radius < outer.radius / 2
            assert (inner.x, inner.y) == (outer.x, outer.y)
            assert inner.radius + 0.04 < RING_HOLE * outer.radius
        else:
            assert all((item.radius > SIZE_LIMIT) == (item.size == "large") for item in scene.items)
            for a, b in combinations(scene.items, 2):
                assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 1e-9


def test_relations_hold_with_a_margin(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes[:3000]:
        if scene.relation in (None, "inside"):
            continue
        first = spec_of(scene).groups[0].count
        axis = "x" if scene.relation in ("left of", "right of") else "y"
        here, there = ([getattr(item, axis) for item in part] for part in (scene.items[:first], scene.items[first:]))
        if scene.relation in ("right of", "below"):
            here, there = there, here
        assert min(there) - max(here) >= RELATION_MARGIN - 1e-9
        checked += 1
    assert checked > 500


def test_a_seed_fixes_the_scenes() -> None:
    draws = [[sample_scene(rng) for _ in range(50)] for rng in (np.random.default_rng(7), np.random.default_rng(7))]
    assert draws[0] == draws[1]


def test_bad_scenes_are_refused() -> None:
    with pytest.raises(InputError, match="hexagon"):
        Item("hexagon", "red", "small", 0.5, 0.5, 0.1)
    with pytest.raises(InputError, match="0 items"):
        Scene(())
    with pytest.raises(InputError, match="above"):
        Spec((Group(1, "red", "circle"),), "above")
