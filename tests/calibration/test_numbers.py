"""Scales, stored numbers, and rounding to them."""

from __future__ import annotations

import pytest
import torch

from hart_edge.calibration.products import Product
from hart_edge.calibration.quantized import Ranges, quantize, weight_scale
from hart_edge.calibration.rounding import round_together
from hart_edge.calibration.schemes import FLOAT, FP8, FP8_BOTH, INT8, SCHEMES, W8A8, WEIGHT_ONLY, Format, exact_scale, scheme_of
from hart_edge.export.stored import Stored
from hart_edge.runtime.errors import InputError

PRODUCT = Product("engine", "x.weight", "MatMul", "x", "y", (19, 7))
CONVOLUTION = Product("engine", "c.weight", "Conv", "x", "y", (5, 3, 3, 3))


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(19, 7, generator=torch.Generator().manual_seed(3))


def test_scales_are_float16_values_at_or_above() -> None:
    wanted = torch.tensor([0.0, 1e-9, 3.3e-7, 1.0, 1.0001, 0.0078125, 511.3])
    scale = exact_scale(wanted)
    assert torch.equal(scale, scale.half().float())
    assert (scale >= wanted).all() and (scale > 0).all()
    assert torch.equal(scale[3:6], torch.tensor([1.0, 1.0009765625, 0.0078125]))


def test_int8_rounds_ties_to_even_and_stops_at_127() -> None:
    stored = INT8.quantize(torch.tensor([0.5, 1.5, -1.5, 300.0, -300.0]), torch.tensor(1.0))
    assert stored.dtype == torch.int8 and stored.tolist() == [0, 2, -2, 127, -127]


def test_fp8_stops_at_448_and_never_makes_nan() -> None:
    stored = FP8.quantize(torch.tensor([1.0, 1.07, 1e6, -1e6]), torch.tensor(1.0)).float()
    assert stored.tolist() == [1.0, 1.125, 448.0, -448.0]


@pytest.mark.parametrize("form", [INT8, FP8])
def test_neighbours_enclose_a_number_and_nothing_lies_between(form: Format) -> None:
    drawn = torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 240 - 120
    values = torch.cat([drawn, torch.tensor([0.0, 8.0, -8.0])])
    low, high = form.neighbours(values)
    assert ((low <= values) & (values <= high)).all()
    assert torch.equal(low[-3:], values[-3:]) and torch.equal(high[-3:], values[-3:])
    between = form.nearest((low + high) / 2)
    assert ((between == low) | (between == high)).all()


def test_every_output_channel_has_its_scale(weight: torch.Tensor) -> None:
    weight[:, 4] = 0
    numbers = quantize(PRODUCT, weight, WEIGHT_ONLY, Ranges())
    assert numbers.scale is not None and numbers.scale.shape == (7,) and numbers.input_scale is None
    assert (numbers.weight[:, 4] == 0).all()
    assert (numbers.weight[:, :4].abs().amax(dim=0) >= 126).all()
    assert weight_scale(torch.randn(5, 3, 3, 3), CONVOLUTION.axis, INT8).shape == (5,)
    assert weight_scale(weight, 1, FP8).shape == ()


def test_activations_bring_scales_of_input_and_output(weight: torch.Tensor) -> None:
    numbers = quantize(PRODUCT, weight, W8A8, Ranges(source=12.7))
    assert numbers.input_scale is not None and float(numbers.input_scale) == pytest.approx(0.1, rel=1e-3)
    assert numbers.output_scale is None
    both = quantize(CONVOLUTION, torch.randn(5, 3, 3, 3), W8A8, Ranges(1.0, 2.0)).tensors("c.weight")
    assert list(both) == ["c.weight", "c.weight.scale", "c.weight.input_scale", "c.weight.output_scale"]
    fp8 = quantize(PRODUCT, weight, FP8_BOTH, Ranges(source=448.0))
    assert fp8.weight.dtype == torch.float8_e4m3fn and float(fp8.input_scale or 0) == 1.0
    assert quantize(PRODUCT, weight, FLOAT, Ranges()).tensors("w").keys() == {"w"}


@pytest.mark.parametrize("form", [INT8, FP8])
def test_rounding_together_beats_the_nearest_and_takes_neighbours_only(form: Format, weight: torch.Tensor) -> None:
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(5)) @ torch.randn(3, 19, generator=torch.Generator().manual_seed(6))
    gram, scale = x.T @ x, weight_scale(weight, 1, form)
    together, nearest = round_together(weight, scale, gram, form), form.quantize(weight, scale)
    low, high = form.neighbours(weight / scale)
    assert ((together.float() >= low) & (together.float() <= high)).all()
    errors = [float(((x @ (stored.float() * scale - weight)) ** 2).sum()) for stored in (together, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_rounding_together_without_data_is_rounding_to_the_nearest(weight: torch.Tensor) -> None:
    scale = weight_scale(weight, 1, INT8)
    assert torch.equal(round_together(weight, scale, torch.eye(19), INT8), INT8.quantize(weight, scale))


@pytest.mark.parametrize("form", [INT8, FP8])
def test_a_stored_weight_is_told_from_another(form: Format, weight: torch.Tensor) -> None:
    scale = weight_scale(weight, 1, form)
    rows = torch.arange(19, dtype=torch.int8) % 3
    moved = Stored(torch.empty(0), None, rows, None).moved(weight)
    own = weight_scale(moved, 1, form)
    assert Stored(form.quantize(moved, own), own, rows, None).differing(weight) == 0
    assert Stored(form.quantize(moved, own), own, None, None).differing(weight) > 0
    other = weight.clone()
    other[3, 2] += 0.3 * float(weight.abs().max())
    assert Stored(form.quantize(weight, scale), scale, None, None).differing(other) == 1
    assert Stored(form.quantize(weight, scale), scale * torch.nan, None, None).differing(weight) == weight.numel()


def test_schemes_end_in_float_and_unknown_ones_are_named() -> None:
    for scheme in SCHEMES.values():
        assert all(scheme.steps(engine)[-1] is FLOAT for engine in scheme.engines)
    with pytest.raises(InputError, match=r"scheme 'int4' is unknown; expected one of weight-only, w8a8"):
        scheme_of("int4")
