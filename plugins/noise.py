"""`noise`: Gumbel or normal noise of one stream for every image of a batch, where the residual diffusion needs it.

seeds [B] uint64 → out [B, …] float32, the numbers of `runtime/noise.py` for (seed, purpose, index).
"""

from __future__ import annotations

import math

import numpy as np

from . import philox
from .check import MAX_GRID_YZ, ceil_div, expect, expect_true, pointer, threads_for
from .kernel import Buffer, Kernel, Launch
from .quantize import Array

OP = "noise"


def noise(seeds: Array, size: int, index: int, purpose: int, normal: bool) -> Array:
    """NumPy truth: [B, size] float32."""
    draw = philox.normal if normal else philox.gumbel
    return np.stack([draw(int(seed), purpose, index, size) for seed in seeds])


def kernel(normal: bool) -> Kernel:
    return Kernel("noise.cuh", f"hart::noise<{str(normal).lower()}>")


KERNELS = (kernel(True), kernel(False))


def launch(seeds: Buffer, out: Buffer, index: int, purpose: int, normal: bool) -> Launch:
    expect(OP, "out", out, out.shape, ("float32",))
    expect_true(OP, len(out.shape) >= 2 and min(out.shape) >= 1, f"out is {out}; expected [B, …], every size 1 or more.")
    batch, size = out.shape[0], math.prod(out.shape[1:])
    expect(OP, "seeds", seeds, (batch,), ("uint64",))
    expect_true(OP, batch <= MAX_GRID_YZ and size < 2**31, f"out is {out}, too large for one launch.")
    expect_true(OP, 0 <= index < 2**31 and 0 <= purpose < 4, f"index {index}, purpose {purpose}; expected 0 or more, and 0 to 3.")
    blocks = ceil_div(size, 4)
    threads = threads_for(blocks, 1, most=128)
    arguments = (pointer(seeds), pointer(out), np.int32(size), np.int32(index), np.int32(purpose))
    return Launch(kernel(normal), (ceil_div(blocks, threads), batch, 1), (threads, 1, 1), 0, arguments)
