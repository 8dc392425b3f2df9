"""`rms_norm`: the truth against the reference, the launches, the kernel against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from devices import Array, Gpu, assert_output, at, native, sanitized, values
from tolerances import assert_close

from hart_edge.export.reference import embeddings
from hart_edge.export.reference.transformer import AdaptiveHeadNorm
from hart_edge.plugins import rms_norm as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.plugins.quantize import QUANTIZED
from hart_edge.runtime.errors import InputError

SIZES = [(1, 19), (6, 111), (4, 989), (6, 1536), (2, 8960), (5, 1528)]
EPS = 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_truth_is_the_reference(size: tuple[int, int], dtype: str) -> None:
    x, weight = values(size, dtype), values(size[1:], dtype, 1)
    expected = embeddings.rms_norm(torch.from_numpy(x), torch.from_numpy(weight), EPS)
    y, total = op.rms_norm(x, weight, EPS)
    assert_close(y, expected, dtype)
    np.testing.assert_array_equal(total, x)


def test_truth_with_modulation_is_the_head_norm_of_the_reference() -> None:
    rows, tokens, width = 2, 3, 111
    norm = AdaptiveHeadNorm(width, EPS)
    norm.ln_wo_grad.weight.data = torch.from_numpy(values((width,), seed=1))
    x, scale, shift = (values((rows, n, width), seed=s) for s, n in ((0, tokens), (2, 1), (3, 1)))
    expected = norm(*map(torch.from_numpy, (x, scale, shift))).detach().reshape(-1, width)
    weight = norm.ln_wo_grad.weight.detach().numpy()
    y, _ = op.rms_norm(x.reshape(-1, width), weight, EPS, modulation=(scale[:, 0], shift[:, 0]))
    assert_close(y, expected, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_truth_adds_the_residual_before_the_norm(dtype: str) -> None:
    x, residual, weight = values((19, 111), dtype), values((19, 111), dtype, 1), values((111,), dtype, 2)
    y, total = op.rms_norm(x, weight, EPS, residual)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, op.rms_norm(x + residual, weight, EPS)[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_of_whole_warps_cover_every_row(size: tuple[int, int], dtype: str) -> None:
    x, weight = at(4096, size, dtype), at(4096, size[1:], dtype)
    with_residual, alone = op.launch(x, weight, x, EPS, (x, x)), op.launch(x, weight, x, EPS)
    assert with_residual.grid == (size[0], 1, 1)
    packs, n = "pair" in alone.kernel.expression, 16 // ITEM_BYTES[dtype]
    assert packs == (size[1] % n == 0 and size[1] <= 2 * n * 512)
    assert alone.grid == (-(-size[0] // 2) if packs else size[0], 1, 1)
    for launch in (with_residual, alone):
        assert launch.block[0] % 32 == 0
        assert launch.kernel in op.KERNELS
    assert not packs or 2 * n * alone.block[0] >= size[1]


@pytest.mark.parametrize(("address", "width", "lanes"), [(4096, 1536, 8), (4098, 1536, 1), (4096, 19, 1)])
def test_lanes_follow_alignment_and_width(address: int, width: int, lanes: int) -> None:
    x = at(address, (3, width), "float16")
    launch = op.launch(x, at(4096, (width,), "float16"), x, EPS, (x, x))
    assert launch.kernel.expression == f"hart::rms_norm<__half, __half, {lanes}>"


def test_wrong_tensors_are_named() -> None:
    x, weight = at(0, (6, 64)), at(0, (64,))
    with pytest.raises(InputError, match=r"weight is float32 \[63\]"):
        op.launch(x, at(0, (63,)), x, EPS)
    with pytest.raises(InputError, match=r"y is float16 \[6, 64\]"):
        op.launch(x, weight, at(0, (6, 64), "float16"), EPS)
    with pytest.raises(InputError, match="must divide the 6 rows"):
        op.launch(x, weight, x, EPS, modulation=(at(0, (4, 64)), at(0, (4, 64))))
    with pytest.raises(InputError, match="scale is None"):
        op.launch(x, weight, at(0, (6, 64), "int8"), EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 2, 3))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("residual", "modulated", "misalign"), [(False, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_kernel(gpu: Gpu, size: tuple[int, int], dtype: str, residual: bool, modulated: bool, misalign: bool) -> None:
    check(gpu, size, dtype, dtype, residual, modulated, misalign)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 2, 3))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out", QUANTIZED)
def test_quantised_kernel(gpu: Gpu, size: tuple[int, int], dtype: str, out: str) -> None:
    if not gpu.needs(out):
        pytest.skip(f"{gpu.device.info.name} has no FP8")
    check(gpu, size, dtype, out, True, size[0] % 2 == 0, False)
    check(gpu, size, dtype, out, False, size[0] % 2 == 0, False)


def truth(dtype: str, x: Array, weight: Array, residual: Array | None, modulation: tuple[Array, Array] | None, *out: Any) -> tuple:
    """`rms_norm` with every tensor in its own type, so that bfloat16 is rounded where the kernel rounds it."""
    x, weight = native(x, dtype), native(weight, dtype)
    residual = None if residual is None else native(residual, dtype)
    factors = None if modulation is None else (native(modulation[0], dtype), native(modulation[1], dtype))
    return op.rms_norm(x, weight, EPS, residual, factors, *out)


def check(gpu: Gpu, size: tuple[int, int], dtype: str, out: str, residual: bool, modulated: bool, misalign: bool) -> None:
    rows, width = size
    x, r, weight = values(size, dtype), values(size, dtype, 1), values((width,), dtype, 2)
    groups = rows // 2 if rows % 2 == 0 else 1
    modulation = (values((groups, width), dtype, 3), values((groups, width), dtype, 4)) if modulated else None
    scale = 0.02 if out in QUANTIZED else None
    y, total = truth(dtype, x, weight, r if residual else None, modulation, scale, out)
    on_gpu = gpu.put(x, dtype, misalign), gpu.put(weight, dtype), gpu.empty(size, out)
    pair = (gpu.put(r, dtype), gpu.empty(size, dtype)) if residual else None
    factors = (gpu.put(modulation[0], dtype), gpu.put(modulation[1], dtype)) if modulation else None
    gpu.run(op.launch(*on_gpu, EPS, pair, factors, scale))
    assert_output(gpu.get(on_gpu[2]), y, out)
    if pair:
        assert_output(gpu.get(pair[1]), total, dtype)


@pytest.mark.gpu
def test_sum_may_replace_the_residual(gpu: Gpu) -> None:
    x, r, weight = values((3, 1536), "float16"), values((3, 1536), "float16", 1), values((1536,), "float16", 2)
    expected, total = op.rms_norm(x, weight, EPS, r)
    residual, y = gpu.put(r), gpu.empty((3, 1536), "float16")
    gpu.run(op.launch(gpu.put(x), gpu.put(weight), y, EPS, (residual, residual)))
    np.testing.assert_array_equal(gpu.get(residual), total)
    assert_output(gpu.get(y), expected, "float16")
