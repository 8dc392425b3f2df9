"""`cast`: the launches, the kernel against NumPy's rounding, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from devices import Gpu, assert_output, at, represented, values
from tolerances import assert_close

from hart_edge.plugins import cast as op
from hart_edge.plugins.kernel import FLOATS, FP8, ITEM_BYTES
from hart_edge.plugins.quantize import e4m3_values
from hart_edge.runtime.errors import InputError

SHAPES = [(1,), (19, 111), (2, 64, 32), (989,)]


def test_truth_rounds_to_even() -> None:
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1e-9, 65504], np.float32)
    assert_close(op.cast(x, "float16"), [1, 1 + 2**-9, 0, 65504], "float64")


def test_truth_of_fp8_is_the_nearest_multiple_of_the_scale() -> None:
    codes = op.cast(np.array([1.0, -0.55, 100, 300, 1e-7], np.float16), FP8, 0.5)
    np.testing.assert_array_equal(e4m3_values(codes) * 0.5, [1, -0.5625, 96, 224, 0])  # 200 lies between 192 and 208; 448 is the largest


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_grid_of_fp8_covers_every_element(shape: tuple[int, ...], dtype: str) -> None:
    launch = op.launch(at(4096, shape, dtype), at(4096, shape, FP8), 0.5)
    size, lanes = int(np.prod(shape)), 16 // ITEM_BYTES[dtype]
    lanes = lanes if size % lanes == 0 else 1
    assert size <= launch.grid[0] * launch.block[0] * lanes < size + launch.block[0] * lanes
    assert launch.kernel in op.KERNELS


@pytest.mark.parametrize("shape", [*SHAPES, (8, 4096, 32)])
def test_grid_covers_every_element(shape: tuple[int, ...]) -> None:
    launch = op.launch(at(4096, shape), at(4096, shape, "float16"))
    size, lanes = int(np.prod(shape)), 4 if np.prod(shape) % 4 == 0 else 1
    assert size <= launch.grid[0] * launch.block[0] * lanes < size + launch.block[0] * lanes
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"x is float32 \[3\], y is float32 \[3\]; expected elements, and float32 on one side only or"):
        op.launch(at(0, (3,)), at(0, (3,)))
    with pytest.raises(InputError, match=r"y is float16 \[4\]; expected float16 \[3\]"):
        op.launch(at(0, (3,)), at(0, (4,), "float16"))
    with pytest.raises(InputError, match="cast: scale is None"):
        op.launch(at(0, (3,)), at(0, (3,), FP8))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [d for d in FLOATS if d != "float32"])
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel_there_and_back(gpu: Gpu, shape: tuple[int, ...], dtype: str, misalign: bool) -> None:
    x = values(shape)
    small, large = gpu.empty(shape, dtype), gpu.empty(shape)
    gpu.run(op.launch(gpu.put(x, misalign=misalign), small), op.launch(small, large))
    np.testing.assert_array_equal(gpu.get(small), represented(x, dtype))
    np.testing.assert_array_equal(gpu.get(large), represented(x, dtype).astype(np.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel_to_fp8(gpu: Gpu, shape: tuple[int, ...], dtype: str, misalign: bool) -> None:
    if not gpu.needs(FP8):
        pytest.skip(f"{gpu.device.info.name} has no FP8")
    x, y = values(shape, dtype, scale=100), gpu.empty(shape, FP8)
    gpu.run(op.launch(gpu.put(x, dtype, misalign), y, 0.3))
    assert_output(gpu.get(y), op.cast(x, FP8, 0.3), FP8)
