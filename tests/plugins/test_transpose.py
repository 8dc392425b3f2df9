"""`transpose`: the launch, and the kernel against NumPy, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from devices import Gpu, at, values

from hart_edge.plugins import transpose as op
from hart_edge.plugins.kernel import FP8
from hart_edge.runtime.errors import InputError

SHAPES = [(1, 1, 1), (2, 19, 111), (3, 32, 4096), (1, 81, 33)]


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_covers_every_element(shape: tuple[int, int, int]) -> None:
    batch, rows, columns = shape
    launch = op.launch(at(0, shape), at(0, (batch, columns, rows)))
    assert columns <= 32 * launch.grid[0] < columns + 32
    assert rows <= 32 * launch.grid[1] < rows + 32
    assert launch.grid[2] == batch


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"y is float32 \[1, 2, 3\]"):
        op.launch(at(0, (1, 2, 3)), at(0, (1, 2, 3)))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel(gpu: Gpu, shape: tuple[int, int, int]) -> None:
    x = values(shape)
    y = gpu.empty((shape[0], shape[2], shape[1]))
    gpu.run(op.launch(gpu.put(x), y))
    np.testing.assert_array_equal(gpu.get(y), x.swapaxes(1, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_of_fp8_weights(gpu: Gpu, shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(shape[1]).integers(0, 256, shape, np.uint8)
    y = gpu.empty((shape[0], shape[2], shape[1]), FP8)
    gpu.run(op.launch(gpu.put(x, FP8), y))
    np.testing.assert_array_equal(gpu.get(y), x.swapaxes(1, 2))
