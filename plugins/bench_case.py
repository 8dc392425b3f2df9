"""A case of the kernels' benchmark, and the sizes of HART-0.7B. Knows nothing of a device.

Bytes are the least that an operator must move: what it needs of its inputs read once, its outputs written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from .kernel import ITEM_BYTES, Buffer, Launch
from .quantize import Array

WIDTH, HEADS, HEAD_DIM, HIDDEN, TEXT, CODEBOOK, LATENT = 1536, 24, 64, 4096, 300, 4096, 32
DIFFUSION, CHANNELS = 1024, 160
"""Width of the diffusion MLP, and of the decoder at full resolution."""
PATCH_NUMS = {1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
"""Sides of the scales by the side of the picture."""
EPS = 1e-6
Shape = tuple[int, ...]
Place = Callable[[Shape, str, Array | None], Buffer]


@dataclass
class Tensors:
    """Hands out buffers and adds up bytes.

    Attributes:
        place: makes a buffer of a shape and dtype, with the given content if it matters.
        moved: bytes that must be read and written.
        total: bytes of all buffers.
    """

    place: Place
    moved: int = field(default=0, init=False)
    total: int = field(default=0, init=False)

    def read(self, shape: Shape, dtype: str, content: Array | None = None, parts: float = 1) -> Buffer:
        """parts: how often, or how much of, the buffer must be read."""
        size = math.prod(shape) * ITEM_BYTES[dtype]
        self.moved += round(parts * size)
        self.total += size
        return self.place(shape, dtype, content)

    def write(self, shape: Shape, dtype: str, parts: float = 1) -> Buffer:
        return self.read(shape, dtype, parts=parts)

    def update(self, shape: Shape, dtype: str) -> Buffer:
        """Read and written in place."""
        return self.read(shape, dtype, parts=2)


@dataclass(frozen=True)
class Case:
    """One operator at one size, batch 1.

    Attributes:
        detail: the size and what is fused, in words.
        dtype: of the activations.
        launches: builds the launches over the tensors that it asks for.
        reason: why it is not judged by bandwidth; empty if it is.
        minimum, maximum: least and greatest compute capability.
    """

    operator: str
    detail: str
    dtype: str
    launches: Callable[[Tensors], tuple[Launch, ...]]
    reason: str = ""
    minimum: int = 75
    maximum: int = 999


def by(*sizes: int) -> str:
    return " × ".join(map(str, sizes))
