"""`upsample`: the truth against torch, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, at, values

from hart_edge.plugins import upsample as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.runtime.errors import InputError

SHAPES = [(1, 1, 1, 3), (2, 19, 3, 32), (1, 19, 111, 5), (2, 7, 9, 320), (1, 3, 2, 4096)]


@pytest.mark.parametrize("shape", SHAPES)
def test_truth_is_the_reference(shape: tuple[int, ...]) -> None:
    x = values(shape)
    expected = F.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest").permute(0, 2, 3, 1)
    np.testing.assert_array_equal(op.upsample(x), expected)


@pytest.mark.parametrize("shape", [*SHAPES, (8, 512, 512, 160)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_grid_covers_every_cell(shape: tuple[int, ...], dtype: str) -> None:
    batch, height, width, channels = shape
    launch = op.launch(at(4096, shape, dtype), at(4096, (batch, 2 * height, 2 * width, channels), dtype))
    lanes = 16 // ITEM_BYTES[dtype] if channels % (16 // ITEM_BYTES[dtype]) == 0 else 1
    across, down, _ = launch.block
    cells = batch * height * width
    assert across == min(channels // lanes, 256)
    assert across * down <= 256
    assert cells <= launch.grid[0] * down < cells + down
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"y is float32 \[1, 4, 5, 32\]; expected float32 \[1, 4, 6, 32\]"):
        op.launch(at(4096, (1, 2, 3, 32)), at(4096, (1, 4, 5, 32)))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel(gpu: Gpu, shape: tuple[int, ...], dtype: str, misalign: bool) -> None:
    x = values(shape, dtype)
    y = gpu.empty((shape[0], 2 * shape[1], 2 * shape[2], shape[3]), dtype)
    gpu.run(op.launch(gpu.put(x, dtype, misalign), y))
    np.testing.assert_array_equal(gpu.get(y), op.upsample(x))
