"""`noise` and Philox: the truth against the runtime's generator, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
from devices import Gpu, at, sanitized
from tolerances import assert_close

from hart_edge.plugins import noise as op
from hart_edge.plugins import philox
from hart_edge.runtime import noise as runtime
from hart_edge.runtime.errors import InputError

SEEDS = np.array([0, 5, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
SIZES = [1, 19, 111 * 989]


@pytest.mark.parametrize("purpose", list(runtime.Purpose))
@pytest.mark.parametrize("size", SIZES)
def test_truth_is_the_runtime_to_the_last_bit(purpose: runtime.Purpose, size: int) -> None:
    for seed in map(int, SEEDS):
        np.testing.assert_array_equal(philox.gumbel(seed, purpose, 13, size), runtime.gumbel(seed, purpose, 13, (1, size))[0])
        np.testing.assert_array_equal(philox.normal(seed, purpose, 13, size), runtime.normal(seed, purpose, 13, (1, size))[0])


def test_purposes_are_numbered_as_in_the_runtime() -> None:
    names = ("TOKEN", "SMOOTH", "DIFFUSION_INIT", "DIFFUSION_STEP")
    assert [getattr(philox, name) for name in names] == [runtime.Purpose[name] for name in names]


@pytest.mark.parametrize("shape", [(1, 1), (2, 19), (4, 4096, 32)])
def test_grid_covers_every_block_of_four(shape: tuple[int, ...]) -> None:
    launch = op.launch(at(0, shape[:1], "uint64"), at(0, shape), 0, philox.DIFFUSION_INIT, True)
    size = int(np.prod(shape[1:]))
    assert size <= 4 * launch.grid[0] * launch.block[0] < size + 4 * launch.block[0]
    assert launch.grid[1] == shape[0]
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"seeds is int64 \[2\]"):
        op.launch(at(0, (2,), "int64"), at(0, (2, 19)), 0, 0, True)
    with pytest.raises(InputError, match=r"out is float32 \[19\]"):
        op.launch(at(0, (1,), "uint64"), at(0, (19,)), 0, 0, True)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 1))
@pytest.mark.parametrize("normal", [True, False])
def test_kernel(gpu: Gpu, size: int, normal: bool) -> None:
    out = gpu.empty((len(SEEDS), size))
    gpu.run(op.launch(gpu.put(SEEDS), out, 13, philox.DIFFUSION_STEP, normal))
    expected = op.noise(SEEDS, size, 13, philox.DIFFUSION_STEP, normal)
    assert_close(gpu.get(out), expected, "noise")
    assert (gpu.get(out) != expected).mean() < 1e-4
