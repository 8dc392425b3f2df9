"""What the benchmark launches: sizes and bytes of every case, and one case on the card against the copy rate."""

from __future__ import annotations

import pytest
from devices import Gpu

from hart_edge.plugins import KERNELS
from hart_edge.plugins.bench_case import PATCH_NUMS, Case, Tensors
from hart_edge.plugins.bench_cases import cases
from hart_edge.plugins.bench_device import copy_rate, time_case
from hart_edge.plugins.catalogue import OPERATORS
from hart_edge.plugins.kernel import ITEM_BYTES, Buffer

MB = 10**6


def counted(case: Case) -> Tensors:
    """The tensors of a case after its launches were built, at invented addresses."""
    tensors = Tensors(lambda shape, dtype, content: Buffer(4096, shape, dtype))
    assert case.launches(tensors)
    return tensors


def test_sides_and_tokens_are_those_of_the_model() -> None:
    assert [300 + sum(p**2 for p in PATCH_NUMS[size][1:]) for size in (1024, 512)] == [9750, 2539]


def test_every_operator_is_timed() -> None:
    assert {case.operator for case in cases(1024)} == {operator.OP for operator in OPERATORS}


@pytest.mark.parametrize("size", [1024, 512])
def test_every_case_launches_kernels_of_the_catalogue_that_take_whole_vectors(size: int) -> None:
    for case in cases(size):
        for launch in case.launches(Tensors(lambda shape, dtype, content: Buffer(4096, shape, dtype))):
            assert launch.kernel in KERNELS
            assert ", 1>" not in launch.kernel.expression


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("operator", "elements"),
    [
        ("rms_norm", 4 * 8192 * 1536),
        ("rope_cache", 6 * 8192 * 1536),
        ("swiglu", 3 * 8192 * 4096),
        ("layer_norm_modulate", 4 * 8192 * 1024),
        ("gate_residual", 4 * 8192 * 1024),
        ("add_bias", 3 * 1024 * 1024 * 160),
        ("join_phases", 2 * 1024 * 1024 * 160),
        ("softmax_rows", 2 * 4096 * 4096),
        ("group_norm_silu", 3 * 1024 * 1024 * 160),
    ],
)
def test_bytes_are_what_the_large_tensors_have(operator: str, elements: int, dtype: str) -> None:
    """Weights, biases and angles are less than a hundredth of these tensors."""
    case = next(case for case in cases(1024) if (case.operator, case.dtype) == (operator, dtype))
    large = elements * ITEM_BYTES[dtype]
    assert large <= counted(case).moved < 1.01 * large


def test_bytes_of_the_sampling() -> None:
    (case,) = (case for case in cases(1024) if case.operator == "guided_sample")
    assert 2 * 4096 * 4096 * 4 < counted(case).moved < 2 * 4096 * 4096 * 4 + 2 * MB


def test_no_more_is_moved_than_there_is_twice() -> None:
    for case in cases(512):
        tensors = counted(case)
        assert 0 < tensors.moved <= 2 * tensors.total


@pytest.mark.gpu
def test_a_case_is_not_faster_than_the_memory(gpu: Gpu) -> None:
    case = next(case for case in cases(1024) if case.operator == "swiglu")
    timing = time_case(gpu.device, gpu.library, case)
    assert 0.1 < timing.rate / copy_rate(gpu.device) < 1.2
