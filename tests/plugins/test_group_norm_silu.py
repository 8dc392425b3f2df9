"""`group_norm_silu`: the truth against torch, the launches, the kernels against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, assert_output, at, sanitized, values
from tolerances import assert_close

from hart_edge.export.reference.autoencoder import _norm
from hart_edge.plugins import group_norm_silu as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.runtime.errors import InputError

SHAPES = [(1, 1, 1, 640), (2, 19, 3, 32), (1, 19, 111, 160), (2, 7, 9, 320), (1, 64, 64, 96)]
LARGE = (1, 1024, 1024, 160)
EPS = 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("silu", [True, False])
def test_truth_is_the_reference(shape: tuple[int, ...], silu: bool) -> None:
    norm = _norm(shape[-1])
    x, weight, bias = values(shape), values(shape[-1:], seed=1), values(shape[-1:], seed=2)
    norm.weight.data, norm.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    y = norm(torch.from_numpy(x).permute(0, 3, 1, 2)).detach()
    expected = (F.silu(y) if silu else y).permute(0, 2, 3, 1)
    assert_close(op.group_norm_silu(x, weight, bias, EPS, silu), expected, "kernel float32")


def plan(shape: tuple[int, ...], dtype: str, silu: bool = True) -> tuple:
    channels = shape[-1]
    partial, affine = (at(4096, s) for s in op.scratch_shapes(shape, dtype))
    x, weight = at(4096, shape, dtype), at(4096, (channels,), dtype)
    return op.launches(x, weight, weight, partial, affine, x, EPS, silu)


@pytest.mark.parametrize("shape", [*SHAPES, LARGE, (8, 1024, 1024, 512), (1, 5, 5, 4096)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_chunks_cover_every_pixel_once(shape: tuple[int, ...], dtype: str) -> None:
    batch, height, width, channels = shape
    statistics, fold, apply = plan(shape, dtype)
    chunk = int(apply.arguments[-1])
    assert height * width <= apply.grid[0] * chunk < height * width + chunk
    assert statistics.grid[0] * statistics.block[1] < height * width + statistics.block[1]  # every block has pixels
    for launch in (statistics, apply):
        assert launch.grid[1:] == (batch, 1)
        assert launch.block[0] * 16 // np.dtype("f4" if dtype == "float32" else "f2").itemsize == channels
        assert launch.block[0] * launch.block[1] <= 1024
    assert statistics.grid[0] == fold.arguments[-2] == op.scratch_shapes(shape, dtype)[0][1] <= op.MAX_CHUNKS
    assert fold.grid == (batch, 1, 1)
    assert all(launch.kernel in op.KERNELS for launch in (statistics, fold, apply))


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match="multiple of 32"):
        plan((1, 4, 4, 33), "float32")
    with pytest.raises(InputError, match="at most 4096 channels"):
        plan((1, 4, 4, 8192), "float32")
    x, weight = at(4096, (1, 4, 4, 64)), at(4096, (64,))
    partial, affine = (at(4096, s) for s in op.scratch_shapes(x.shape, "float32"))
    with pytest.raises(InputError, match="must start on 16 bytes"):
        op.launches(at(4100, x.shape), weight, weight, partial, affine, x, EPS)
    with pytest.raises(InputError, match=r"partial is float32 \[1, 2, 2, 32\]"):
        op.launches(x, weight, weight, at(4096, (1, 2, 2, 32)), affine, x, EPS)


def run(gpu: Gpu, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, dtype: str, silu: bool) -> np.ndarray:
    scratch = [gpu.empty(shape) for shape in op.scratch_shapes(x.shape, dtype)]
    y = gpu.empty(x.shape, dtype)
    gpu.run(*op.launches(*(gpu.put(t, dtype) for t in (x, weight, bias)), *scratch, y, EPS, silu))
    return gpu.get(y)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", sanitized(SHAPES, 1, 2))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("silu", [True, False])
def test_kernels(gpu: Gpu, shape: tuple[int, ...], dtype: str, silu: bool) -> None:
    x, weight, bias = values(shape, dtype), values(shape[-1:], dtype, 1), values(shape[-1:], dtype, 2)
    assert_output(run(gpu, x, weight, bias, dtype, silu), op.group_norm_silu(x, weight, bias, EPS, silu), dtype)


@pytest.mark.gpu
def test_a_large_mean_does_not_drown_the_variance(gpu: Gpu) -> None:
    """x = 1000 + noise: the plain mean of squares would lose six of seven digits."""
    x = (1000 + values((1, 64, 64, 64))).astype(np.float32)
    weight, bias = np.ones(64, np.float32), np.zeros(64, np.float32)
    expected = op.group_norm_silu(x, weight, bias, EPS)
    assert_output(run(gpu, x, weight, bias, "float32", True), expected, "float32", "large mean")


@pytest.mark.gpu
def test_two_runs_give_the_same_bits_in_place(gpu: Gpu) -> None:
    shape = (2, 64, 64, 320)
    x, weight, bias = values(shape, "float16"), values(shape[-1:], "float16", 1), values(shape[-1:], "float16", 2)
    scratch = [gpu.empty(s) for s in op.scratch_shapes(shape, "float16")]
    on_gpu = gpu.put(x)
    gpu.run(*op.launches(on_gpu, gpu.put(weight), gpu.put(bias), *scratch, on_gpu, EPS))
    np.testing.assert_array_equal(gpu.get(on_gpu), run(gpu, x, weight, bias, "float16", True))


@pytest.mark.gpu
@pytest.mark.slow
def test_kernels_at_full_size(gpu: Gpu) -> None:
    x, weight, bias = values(LARGE, "float16"), values(LARGE[-1:], "float16", 1), values(LARGE[-1:], "float16", 2)
    x[..., 5:10] *= 3
    assert_output(run(gpu, x, weight, bias, "float16", True), op.group_norm_silu(x, weight, bias, EPS), "float16")
