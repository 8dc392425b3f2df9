"""`diffusion_update`: one DDPM step behind the network, x_t → x_{t−1}.

    eps = (1 + t)·eps_c − t·eps_u;  x0 = clip(recip·x − recip_minus_1·eps, −1, 1);  f = (v + 1)/2
    x'  = factor·(mean_x0·x0 + mean_xt·x + gain·exp(½·(f·log_beta + (1 − f)·log_posterior))·noise)

x, next [B, L, Z] float32 (next may be x); raw [2·B·L, 2Z]: eps and v of the conditional rows, then of the unconditional
ones, of which only eps counts. coefficients: the eight of `runtime.diffusion.COEFFICIENTS`, the last of which is t. The
noise is read, or drawn from the images' seeds: the numbers of `runtime/noise.py`. Outputs on request: `input`
[2·B·L, Z] in raw's type, x' for both guidance halves, and `prediction` [B·L, 2Z] float32, the guided eps and v.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import philox
from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, pointer, threads_for
from .kernel import C_TYPES, FLOATS, Buffer, Kernel, Launch
from .quantize import Array

OP = "diffusion_update"
COEFFICIENTS = 8


def diffusion_update(x: Array, raw: Array, noise: Array, coefficients: Sequence[float], factor: float = 1.0) -> tuple[Array, Array]:
    """NumPy truth: x' as x, and the guided (eps, v) [B·L, 2Z]."""
    recip, recip_minus_1, mean_x0, mean_xt, log_beta, log_posterior, gain, t = np.asarray(coefficients, np.float32)
    channels = x.shape[-1]
    conditional, unconditional = np.split(raw.astype(np.float32), 2)
    eps = (1 + t) * conditional[:, :channels] - t * unconditional[:, :channels]
    v, flat = conditional[:, channels:], x.reshape(-1, channels)
    x0 = np.clip(recip * flat - recip_minus_1 * eps, -1, 1)
    fraction = (v + 1) / 2
    deviation = np.exp(np.float32(0.5) * (fraction * log_beta + (1 - fraction) * log_posterior))
    earlier = np.float32(factor) * (mean_x0 * x0 + mean_xt * flat + gain * deviation * noise.reshape(-1, channels))
    return earlier.reshape(x.shape), np.concatenate([eps, v], axis=1)


def drawn(seeds: Array, step: int, shape: tuple[int, int]) -> Array:
    """NumPy truth of the noise that the kernel draws: [B, L, Z]."""
    return np.stack([philox.normal(int(seed), philox.DIFFUSION_STEP, step, shape[0] * shape[1]).reshape(shape) for seed in seeds])


def kernel(dtype: str, draws: bool) -> Kernel:
    return Kernel("diffusion_update.cuh", f"hart::diffusion_update<{C_TYPES[dtype]}, {str(draws).lower()}>")


KERNELS = tuple(kernel(d, draws) for d in FLOATS for draws in (False, True))


def launch(
    x: Buffer,
    raw: Buffer,
    noise: Buffer,
    next_x: Buffer,
    coefficients: Sequence[float],
    step: int = 0,
    factor: float = 1.0,
    input_x: Buffer | None = None,
    prediction: Buffer | None = None,
) -> Launch:
    """noise: [B, L, Z] float32, or seeds [B] uint64 from which the noise of `step` is drawn."""
    batch, rows, channels = expect_rank(OP, "x", x, "B L Z", ("float32",))
    total, size = batch * rows, rows * channels
    expect(OP, "raw", raw, (2 * total, 2 * channels), FLOATS)
    draws = noise.dtype == "uint64"
    expect(OP, "noise", noise, (batch,) if draws else x.shape, ("uint64", "float32"))
    expect(OP, "next", next_x, x.shape, ("float32",))
    if input_x is not None:
        expect(OP, "input", input_x, (2 * total, channels), (raw.dtype,))
    if prediction is not None:
        expect(OP, "prediction", prediction, (total, 2 * channels), ("float32",))
    expect_true(OP, len(coefficients) == COEFFICIENTS, f"{len(coefficients)} coefficients were given; expected {COEFFICIENTS}.")
    expect_true(OP, 0 <= step < 2**31, f"step {step}; expected 0 or more.")
    expect_true(OP, batch <= MAX_GRID_YZ and size < 2**31 - 4, f"x is {x}, too large for one launch.")
    blocks = ceil_div(size, 4)
    threads = threads_for(blocks, 1, most=128)
    sources = (pointer(None if draws else noise), pointer(noise if draws else None))
    pointers = (pointer(x), pointer(raw), *sources, *map(pointer, (next_x, input_x, prediction)))
    constants = tuple(np.float32(number) for number in (*coefficients, factor))
    arguments = (*pointers, np.int32(size), np.int32(channels), np.int32(step), *constants)
    return Launch(kernel(raw.dtype, draws), (ceil_div(blocks, threads), batch, 1), (threads, 1, 1), 0, arguments)
