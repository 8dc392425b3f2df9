"""`add_bias`: the truth against torch, the launches, the kernel against the truth."""

from __future__ import annotations

import pytest
import torch
from devices import Gpu, assert_output, at, values
from tolerances import assert_close

from hart_edge.plugins import add_bias as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.runtime.errors import InputError

SIZES = [(1, 3), (19, 111), (989, 96), (5, 4096)]


def test_truth_is_the_bias_of_a_convolution() -> None:
    x, bias = values((19, 111)), values((111,), seed=1)
    identity = torch.eye(111)[:, :, None]
    expected = torch.nn.functional.conv1d(torch.from_numpy(x).T[None], identity, torch.from_numpy(bias))[0].T + torch.from_numpy(x)
    assert_close(op.add_bias(x, bias, x), expected, "kernel float32")


@pytest.mark.parametrize("size", [*SIZES, (1 << 20, 3), (1 << 20, 160)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_grid_covers_every_row(size: tuple[int, int], dtype: str) -> None:
    rows, width = size
    launch = op.launch(at(4096, size, dtype), at(4096, (width,), dtype), at(4096, size, dtype))
    lanes = 16 // ITEM_BYTES[dtype] if width % (16 // ITEM_BYTES[dtype]) == 0 else 1
    across, down, _ = launch.block
    assert across == min(width // lanes, 256)
    assert across * down <= 256
    assert rows <= launch.grid[0] * down < rows + down
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    x = at(4096, (3, 64))
    with pytest.raises(InputError, match=r"bias is float32 \[63\]"):
        op.launch(x, at(4096, (63,)), x)
    with pytest.raises(InputError, match=r"residual is float16 \[3, 64\]"):
        op.launch(x, at(4096, (64,)), x, at(4096, (3, 64), "float16"))


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel_in_place(gpu: Gpu, size: tuple[int, int], dtype: str, with_residual: bool, misalign: bool) -> None:
    x, bias, residual = values(size, dtype), values(size[1:], dtype, 1), values(size, dtype, 2) if with_residual else None
    on_gpu = gpu.put(x, dtype, misalign)
    gpu.run(op.launch(on_gpu, gpu.put(bias, dtype), on_gpu, None if residual is None else gpu.put(residual, dtype)))
    assert_output(gpu.get(on_gpu), op.add_bias(x, bias, residual), dtype)
