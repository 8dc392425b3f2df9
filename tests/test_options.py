"""Limits of every option, and the seed."""

from __future__ import annotations

import dataclasses
import math

import pytest

from hart_edge.runtime.errors import InputError
from hart_edge.runtime.options import Options, check_seed, override, parse_options, top_k_of


def test_defaults_are_the_published_ones() -> None:
    assert Options() == Options(cfg=4.5, top_k=None, top_p=0.0, smooth=True, diffusion_steps=None, residual=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg": 0.0},
        {"cfg": 19.0},
        {"top_k": 1},
        {"top_k": 10**9},
        {"top_p": 0.0},
        {"top_p": 0.9},
        {"top_p": 1.0},
        {"diffusion_steps": 1},
        {"diffusion_steps": 1000},
        {"smooth": False},
        {"residual": False},
    ],
)
def test_accepted_values(settings: dict[str, float]) -> None:
    assert dataclasses.asdict(Options(**settings)) == dataclasses.asdict(Options()) | settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cfg": -0.1}, "cfg is -0.1"),
        ({"cfg": math.nan}, "cfg is nan"),
        ({"cfg": math.inf}, "cfg is inf"),
        ({"cfg": -math.inf}, "cfg is -inf"),
        ({"top_k": 0}, "top-k is 0"),
        ({"top_k": -19}, "top-k is -19"),
        ({"top_p": -0.01}, "top-p is -0.01"),
        ({"top_p": 1.01}, "top-p is 1.01"),
        ({"top_p": math.nan}, "top-p is nan"),
        ({"diffusion_steps": 0}, "diffusion steps is 0"),
        ({"diffusion_steps": -8}, "diffusion steps is -8"),
        ({"diffusion_steps": 1001}, "diffusion steps is 1001"),
    ],
)
def test_refused_values_are_named_with_a_remedy(settings: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        Options(**settings)
    assert named in str(caught.value)
    assert caught.value.hint


def test_parsed_options_take_the_published_value_where_a_field_is_left_out() -> None:
    assert parse_options({}) == Options()
    assert parse_options({"cfg": 3, "top_k": 19, "smooth": False}) == Options(cfg=3, top_k=19, smooth=False)
    assert parse_options({"top_k": None, "diffusion_steps": None}) == Options()
    options = Options(cfg=2.5, top_k=7, top_p=0.5, smooth=False, diffusion_steps=4, residual=False)
    assert parse_options(dataclasses.asdict(options)) == options


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"guidance": 3.0}, "unknown setting 'guidance'; expected some of cfg"),
        ({"cfg": "3"}, "cfg is '3'; expected int or float"),
        ({"cfg": True}, "cfg is True"),
        ({"cfg": None}, "cfg is None"),
        ({"cfg": 1e9}, "cfg is 1000000000"),
        ({"top_p": [0.5]}, "top_p is"),
        ({"top_k": 1.5}, "top_k is 1.5; expected int or null"),
        ({"top_k": 0}, "top-k is 0"),
        ({"smooth": 0}, "smooth is 0; expected bool"),
        ({"residual": "no"}, "residual is 'no'"),
    ],
)
def test_parsed_options_that_cannot_be_used_are_named(raw: dict[str, object], named: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_options(raw)
    assert named in str(caught.value)
    assert caught.value.hint


def test_override_keeps_what_is_not_given() -> None:
    model = Options(cfg=3.0, smooth=False)
    assert override(model, cfg=None, top_k=None, smooth=None) == model
    assert override(model, cfg=0.0, smooth=True, top_k=19) == Options(cfg=0.0, smooth=True, top_k=19)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_seeds_of_64_bits_are_accepted(seed: int) -> None:
    assert check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, -(2**64), 2**64, 2**111])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(InputError, match=f"seed is {seed};") as caught:
        check_seed(seed)
    assert caught.value.hint


def test_top_k_schedule() -> None:
    assert [top_k_of(Options(), scale) for scale in (0, 6, 7, 13)] == [600, 600, 300, 300]


def test_explicit_top_k_holds_at_every_scale() -> None:
    assert {top_k_of(Options(top_k=19), scale) for scale in range(14)} == {19}


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().cfg = 1.0  # type: ignore[misc]
