"""cuBLASLt of the emulated GPU: what a product was planned for, computed with NumPy; FP8 operands are their codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from hart_edge.plugins.kernel import FP8
from hart_edge.plugins.quantize import Array, e4m3_values
from hart_edge.runtime.fused.blas import Shape


class Product:
    """Stands for a planned product."""

    def __init__(self, memory: Any, shape: Shape) -> None:
        self._memory, self._shape = memory, shape

    def run(self, x: int, w: int, y: int, stream: Any, c: int = 0, bias: int = 0, scales: tuple[int, int] = (0, 0)) -> None:
        s, at = self._shape, self._memory.strided
        rows, columns = (s.n, s.k) if s.transposed else (s.k, s.n)
        leads = [lead or width for lead, width in zip(s.lead, (s.k, columns, s.n), strict=True)]
        a = self._operand(x, s.strides[0], (s.m, leads[0]), s.k)
        b = self._operand(w, s.strides[1], (rows, leads[1]), columns)
        result = np.float32(s.alpha) * a @ (b.swapaxes(1, 2) if s.transposed else b)
        if s.dtype == FP8:
            result = result * np.prod([self._memory.at(scale, (1,), np.float32) for scale in scales])
        if s.bias:
            result = result + self._memory.at(bias, (s.n,), s.out).astype(np.float32)
        if s.add:
            result = result + at(c, (s.batch, s.strides[2]), (s.m, leads[2]), s.n, s.out)
        at(y, (s.batch, s.strides[2]), (s.m, leads[2]), s.n, s.out)[...] = result

    def _operand(self, address: int, stride: int, rows: tuple[int, int], columns: int) -> Array:
        """[batch, rows, columns] in float32."""
        how = (address, (self._shape.batch, stride), rows, columns)
        if self._shape.dtype == FP8:
            return e4m3_values(self._memory.strided(*how, np.uint8))
        stored: Array = self._memory.strided(*how, self._shape.dtype)
        return stored.astype(np.float32)


class Blas:
    """Stands for `Blas`."""

    fast_accumulation = False

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def plan(self, shape: Shape) -> Product:
        return Product(self._memory, shape)
