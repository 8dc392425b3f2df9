"""`diffusion_update`: the truth against the reference's DDPM step, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import Gpu, assert_output, at, represented, values
from tolerances import assert_close

from hart_edge.export.reference.diffusion import DiffusionHead, Schedule
from hart_edge.plugins import diffusion_update as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.runtime import noise as runtime
from hart_edge.runtime.diffusion import COEFFICIENTS, schedule
from hart_edge.runtime.errors import InputError

SIZES = [(1, 1, 1), (2, 19, 5), (3, 25, 32), (1, 111, 7)]
"""Images, rows of each, channels."""
SEEDS = np.array([5, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
GUIDANCE = 1.5
STEPS = 8


def tensors(size: tuple[int, int, int], dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, raw, noise."""
    batch, rows, channels = size
    return values(size), represented(0.5 * values((2 * batch * rows, 2 * channels), seed=1), dtype), values(size, seed=2)


def coefficients(order: int) -> list[float]:
    """Of the step that runs as number `order`, with guidance."""
    return [*schedule(STEPS)[order].tolist(), GUIDANCE]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", [2, 5, 7])
def test_truth_is_the_step_of_the_reference(size: tuple[int, int, int], order: int) -> None:
    batch, rows, channels = size
    x, raw, noise = tensors(size)
    guided = DiffusionHead(channels, 3, 4, 1).guided(torch.from_numpy(raw), GUIDANCE)[: batch * rows]
    eps, v = guided.split(channels, dim=1)
    flat, drawn = (torch.from_numpy(a.reshape(-1, channels)) for a in (x, noise))
    expected = Schedule.cosine(STEPS).step(STEPS - 1 - order, flat, eps, v, drawn)
    earlier, prediction = op.diffusion_update(x, raw, noise, coefficients(order), factor=0.6)
    assert_close(earlier.reshape(-1, channels), 0.6 * expected, "kernel float32")
    assert_close(prediction, guided, "kernel float32")


def test_noise_is_that_of_the_runtime() -> None:
    drawn = op.drawn(SEEDS, 5, (19, 7))
    expected = runtime.PhiloxNoise([int(seed) for seed in SEEDS])
    np.testing.assert_array_equal(drawn, [expected.diffusion_step(j, 5, (19, 7)) for j in range(len(SEEDS))])
    assert len(COEFFICIENTS) == op.COEFFICIENTS


@pytest.mark.parametrize("size", [*SIZES, (8, 4096, 32)])
def test_grid_covers_every_block_of_noise(size: tuple[int, int, int]) -> None:
    batch, rows, channels = size
    raw = at(4096, (2 * batch * rows, 2 * channels), "float16")
    launch = op.launch(at(4096, size), raw, at(4096, (batch,), "uint64"), at(4096, size), coefficients(3), 3)
    blocks = -(-rows * channels // 4)
    assert blocks <= launch.grid[0] * launch.block[0] < blocks + launch.block[0]
    assert launch.grid[1] == batch
    assert launch.arguments[2].value == 0
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    x, raw, noise = at(0, (2, 3, 5)), at(0, (12, 10)), at(0, (2, 3, 5))
    with pytest.raises(InputError, match=r"raw is float32 \[6, 10\]"):
        op.launch(x, at(0, (6, 10)), noise, x, coefficients(3))
    with pytest.raises(InputError, match=r"noise is uint64 \[3\]"):
        op.launch(x, raw, at(0, (3,), "uint64"), x, coefficients(3))
    with pytest.raises(InputError, match="7 coefficients were given"):
        op.launch(x, raw, noise, x, coefficients(3)[:7])
    with pytest.raises(InputError, match=r"input is float16 \[12, 5\]"):
        op.launch(x, raw, noise, x, coefficients(3), input_x=at(0, (12, 5), "float16"))


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("drawn", [True, False])
def test_kernel_in_place(gpu: Gpu, size: tuple[int, int, int], dtype: str, drawn: bool) -> None:
    batch, rows, channels = size
    x, raw, noise = tensors(size, dtype)
    if drawn:
        noise = op.drawn(SEEDS[:batch], 4, (rows, channels))
    on_gpu, source = gpu.put(x), gpu.put(SEEDS[:batch] if drawn else noise)
    input_x, prediction = gpu.empty((2 * batch * rows, channels), dtype), gpu.empty((batch * rows, 2 * channels))
    gpu.run(op.launch(on_gpu, gpu.put(raw, dtype), source, on_gpu, coefficients(4), 4, 0.6, input_x, prediction))
    earlier, guided = op.diffusion_update(x, raw, noise, coefficients(4), 0.6)
    assert_output(gpu.get(on_gpu), earlier, "float32")
    assert_output(gpu.get(prediction), guided, "float32")
    both = np.concatenate([earlier, earlier]).reshape(-1, channels)
    assert_output(gpu.get(input_x), represented(both, dtype), dtype)


@pytest.mark.gpu
def test_the_last_step_reads_no_noise_that_matters(gpu: Gpu) -> None:
    x, raw, noise = tensors((2, 19, 5))
    outputs = []
    for source in (gpu.put(noise), gpu.put(SEEDS[:2])):
        y = gpu.empty(x.shape)
        gpu.run(op.launch(gpu.put(x), gpu.put(raw), source, y, coefficients(STEPS - 1), STEPS - 1))
        outputs.append(gpu.get(y))
    np.testing.assert_array_equal(outputs[0], outputs[1])
