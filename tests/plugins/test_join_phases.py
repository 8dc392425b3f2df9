"""`join_phases`: the truth against torch's pixel shuffle, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, at, values

from hart_edge.plugins import join_phases as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.runtime.errors import InputError

SHAPES = [(1, 2, 2, 3), (2, 38, 6, 32), (1, 18, 222, 5), (2, 14, 18, 320), (1, 6, 4, 4096)]
"""Of y: B, 2H, 2W, C."""


def phases(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """z's shape."""
    batch, height, width, channels = shape
    return batch, height // 2 + 1, width // 2 + 1, 4 * channels


@pytest.mark.parametrize("shape", SHAPES)
def test_truth_is_a_pixel_shuffle_of_shifted_phases(shape: tuple[int, ...]) -> None:
    z = values(phases(shape))
    parts = torch.from_numpy(z).permute(0, 3, 1, 2).chunk(4, dim=1)
    height, width = shape[1] // 2, shape[2] // 2
    shifted = [part[:, :, p : p + height, q : q + width] for part, (p, q) in zip(parts, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)]
    expected = F.pixel_shuffle(torch.stack(shifted, dim=2).flatten(1, 2), 2).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(op.join_phases(z), expected)


@pytest.mark.parametrize("shape", [*SHAPES, (8, 1024, 1024, 160)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_grid_covers_every_column_of_every_row(shape: tuple[int, ...], dtype: str) -> None:
    batch, height, width, channels = shape
    launch = op.launch(at(4096, phases(shape), dtype), at(4096, shape, dtype))
    lanes = 16 // ITEM_BYTES[dtype] if channels % (16 // ITEM_BYTES[dtype]) == 0 else 1
    across, down, _ = launch.block
    assert across == min(channels // lanes, 256)
    assert across * down <= 256
    assert width <= launch.grid[0] * down < width + down
    assert launch.grid[1] == batch * height
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"z is float32 \[1, 2, 4, 128\]; expected float32 \[1, 3, 4, 128\]"):
        op.launch(at(4096, (1, 2, 4, 128)), at(4096, (1, 4, 6, 32)))
    with pytest.raises(InputError, match="even number of rows"):
        op.launch(at(4096, (1, 3, 4, 128)), at(4096, (1, 5, 6, 32)))
    with pytest.raises(InputError, match="at most 65535 rows"):
        op.launch(at(4096, (1, 40001, 2, 4)), at(4096, (1, 80000, 2, 1)))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel(gpu: Gpu, shape: tuple[int, ...], dtype: str, misalign: bool) -> None:
    z = values(phases(shape), dtype)
    y = gpu.empty(shape, dtype)
    gpu.run(op.launch(gpu.put(z, dtype, misalign), y))
    np.testing.assert_array_equal(gpu.get(y), op.join_phases(z))
