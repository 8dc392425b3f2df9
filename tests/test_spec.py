"""Model facts: derived sizes, JSON round trip, and refusal of impossible ones."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.spec import ENGINES, ModelSpec, cache_names


def test_derived_sizes(tiny_spec: ModelSpec) -> None:
    assert (tiny_spec.scales, tiny_spec.grid, tiny_spec.image_size, tiny_spec.head_dim) == (3, 5, 80, 4)


def test_cache_holds_the_context_and_every_later_scale(tiny_spec: ModelSpec) -> None:
    assert [tiny_spec.input_tokens(i) for i in range(3)] == [7, 9, 25]
    assert tiny_spec.cache_length == 41


def test_cache_length_of_the_released_sizes(tiny_spec: ModelSpec) -> None:
    patch_nums = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
    spec = replace(tiny_spec, patch_nums=patch_nums, phi_index=(0,) * 13, context_tokens=300)
    assert spec.cache_length == 9750


def test_json_round_trip(tiny_spec: ModelSpec) -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(tiny_spec.to_json()))) == tiny_spec


def test_missing_and_unknown_keys_are_named(tiny_spec: ModelSpec) -> None:
    raw = tiny_spec.to_json() | {"colour": 1}
    del raw["depth"], raw["width"]
    with pytest.raises(BundleError, match=r"missing \['depth', 'width'\], unknown \['colour'\]"):
        ModelSpec.from_json(raw)


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", None])
@pytest.mark.parametrize("name", ["context_tokens", "depth", "width", "heads", "codebook_size", "diffusion_steps", "downsample"])
def test_sizes_must_be_whole_and_positive(tiny_spec: ModelSpec, name: str, value: Any) -> None:
    with pytest.raises(BundleError, match=name):
        replace(tiny_spec, **{name: value})


@pytest.mark.parametrize("patch_nums", [(), (5,), (1, 1), (3, 1), (1, 4, 2)])
def test_patch_nums_must_increase(tiny_spec: ModelSpec, patch_nums: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match="patch_nums"):
        replace(tiny_spec, patch_nums=patch_nums, phi_index=(0,) * max(0, len(patch_nums) - 1))


def test_phi_index_has_one_entry_per_transition(tiny_spec: ModelSpec) -> None:
    with pytest.raises(BundleError, match="phi_index needs 2 entries, not 3"):
        replace(tiny_spec, phi_index=(0, 1, 2))


def test_names_are_distinct() -> None:
    names = [name for layer in range(19) for name in cache_names(layer)]
    assert len(set(names)) == len(names) == 76
    assert len(set(ENGINES)) == 7
