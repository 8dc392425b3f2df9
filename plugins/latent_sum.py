"""`latent_sum`: `out = f_hat + codes (+ residual)`, the latent that is decoded.

All float32 of one shape, [B, G², Z]; out may be f_hat. Every sum is rounded, as on the CPU.
"""

from __future__ import annotations

import math

import numpy as np

from .check import ceil_div, expect, expect_true, pointer, threads_for
from .kernel import Buffer, Kernel, Launch
from .quantize import Array

OP = "latent_sum"


def latent_sum(f_hat: Array, codes: Array, residual: Array | None = None) -> Array:
    """NumPy truth."""
    total = f_hat + codes
    return total if residual is None else total + residual


KERNEL = Kernel("latent_sum.cuh", "hart::latent_sum")
KERNELS = (KERNEL,)


def launch(f_hat: Buffer, codes: Buffer, out: Buffer, residual: Buffer | None = None) -> Launch:
    size = math.prod(f_hat.shape)
    for name, buffer in (("f_hat", f_hat), ("codes", codes), ("out", out), ("residual", residual)):
        if buffer is not None:
            expect(OP, name, buffer, f_hat.shape, ("float32",))
    expect_true(OP, 1 <= size < 2**31 - 256, f"f_hat is {f_hat}, too large for one launch.")
    threads = threads_for(size, 1, most=256)
    arguments = (*map(pointer, (f_hat, codes, residual, out)), np.int32(size))
    return Launch(KERNEL, (ceil_div(size, threads), 1, 1), (threads, 1, 1), 0, arguments)
