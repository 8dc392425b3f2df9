"""`add_silu`: the truth against torch, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, assert_output, at, native, values
from tolerances import assert_close

from hart_edge.plugins import add_silu as op
from hart_edge.plugins.kernel import FLOATS, FP8, ITEM_BYTES
from hart_edge.plugins.quantize import e4m3_codes
from hart_edge.runtime.errors import InputError

SIZES = [(1, 19), (19, 111), (3, 989), (5, 1024)]


@pytest.mark.parametrize("size", SIZES)
def test_truth_is_silu_of_the_sum(size: tuple[int, int]) -> None:
    x, row = values(size, scale=4), values(size[1:], seed=1)
    total = torch.from_numpy(x) + torch.from_numpy(row)
    assert_close(op.add_silu(x, row), F.silu(total), "kernel float32")
    assert_close(op.add_silu(x), F.silu(torch.from_numpy(x)), "kernel float32")


def test_quantised_truth_is_that_of_the_rounded_value() -> None:
    x = values((19, 111), "float16", scale=4)
    np.testing.assert_array_equal(op.add_silu(x, None, 0.02, FP8), e4m3_codes(op.add_silu(x).astype(np.float32) * np.float32(50)))


def test_truth_at_the_ends_of_the_range() -> None:
    assert_close(op.add_silu(np.array([[-200, 200, 0]], np.float32)), [[0, 200, 0]], "float32")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_grid_covers_every_element(size: tuple[int, int], dtype: str) -> None:
    rows, width = size
    launch = op.launch(at(4096, size, dtype), at(4096, size, dtype))
    lanes = 16 // ITEM_BYTES[dtype] if width % (16 // ITEM_BYTES[dtype]) == 0 else 1
    assert launch.grid[0] == rows
    assert width <= launch.grid[1] * launch.block[0] * lanes < width + launch.block[0] * lanes
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    x = at(0, (3, 64))
    with pytest.raises(InputError, match=r"row is float32 \[63\]"):
        op.launch(x, x, at(0, (63,)))
    with pytest.raises(InputError, match=r"y is float32 \[3, 63\]"):
        op.launch(x, at(0, (3, 63)))
    with pytest.raises(InputError, match="scale is None"):
        op.launch(x, at(0, (3, 64), FP8))


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_row", [True, False])
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel_in_place(gpu: Gpu, size: tuple[int, int], dtype: str, with_row: bool, misalign: bool) -> None:
    x, row = values(size, dtype, scale=4), values(size[1:], dtype, 1) if with_row else None
    on_gpu = gpu.put(x, dtype, misalign)
    gpu.run(op.launch(on_gpu, on_gpu, None if row is None else gpu.put(row, dtype)))
    assert_output(gpu.get(on_gpu), op.add_silu(x, row), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_kernel_to_fp8(gpu: Gpu, size: tuple[int, int], dtype: str) -> None:
    if not gpu.needs(FP8):
        pytest.skip(f"{gpu.device.info.name} has no FP8")
    x, row, y = values(size, dtype, scale=4), values(size[1:], dtype, 1), gpu.empty(size, FP8)
    gpu.run(op.launch(gpu.put(x, dtype), y, gpu.put(row, dtype), 0.02))
    assert_output(gpu.get(y), op.add_silu(native(x, dtype), native(row, dtype), 0.02, FP8), FP8)
