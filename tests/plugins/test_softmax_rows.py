"""`softmax_rows`: the truth against torch, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import Gpu, assert_output, at, values
from tolerances import assert_close

from hart_edge.plugins import softmax_rows as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.runtime.errors import InputError

SIZES = [(1, 1), (19, 111), (3, 989), (5, 256), (7, 4096), (2, 2049)]  # the last: more than a block keeps


@pytest.mark.parametrize("size", SIZES)
def test_truth_is_softmax(size: tuple[int, int]) -> None:
    x = values(size, scale=10) + np.float32(100)
    assert_close(op.softmax_rows(x), torch.softmax(torch.from_numpy(x), -1), "kernel float32")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_block_per_row(size: tuple[int, int], dtype: str) -> None:
    launch = op.launch(at(4096, size, dtype), at(4096, size, dtype))
    lanes = 16 // ITEM_BYTES[dtype] if size[1] % (16 // ITEM_BYTES[dtype]) == 0 else 1
    assert launch.grid == (size[0], 1, 1)
    assert launch.block[0] % 32 == 0
    assert launch.kernel.expression.endswith(f" {lanes}>")
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"y is float32 \[3, 63\]"):
        op.launch(at(0, (3, 64)), at(0, (3, 63)))


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel_in_place(gpu: Gpu, size: tuple[int, int], dtype: str, misalign: bool) -> None:
    x = values(size, dtype, scale=4)
    on_gpu = gpu.put(x, dtype, misalign)
    gpu.run(op.launch(on_gpu, on_gpu))
    assert_output(gpu.get(on_gpu), op.softmax_rows(x), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_masked_elements_weigh_nothing(gpu: Gpu, dtype: str) -> None:
    x = values((2, 4096), dtype)
    x[:, :3000] = -np.inf  # whole warps of them
    on_gpu = gpu.put(x, dtype)
    gpu.run(op.launch(on_gpu, on_gpu))
    assert_output(gpu.get(on_gpu), op.softmax_rows(x), dtype)
