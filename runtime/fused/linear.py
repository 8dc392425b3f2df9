"""`y = x @ weight (+ bias) (+ residual)` for a fixed number of rows: one cuBLASLt product with everything in its epilogue."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hart_edge.plugins.kernel import FP8, ITEM_BYTES, Buffer

from ..cuda import Stream
from ..errors import InputError
from .blas import Blas, Matmul, Shape
from .fp8 import Fp8Weight, Weight


@dataclass(frozen=True)
class _Product:
    """One product of a layer: its shape, the weight's address, the addresses of the scales of x and weight, the first column."""

    shape: Shape
    weight: int
    scales: tuple[int, int]
    start: int


class Linear:
    """A linear layer over `rows` rows.

    Sums are float32, y is rounded once; float32 layers are true float32. cuBLASLt has no SiLU: an activation is a kernel's.
    An FP8 weight takes one product per weight scale.

    Args:
        blas: plans and runs it; layers of one shape share a plan.
        rows: of x and y.
        weight: [in, out], as the bundle stores it, or in FP8.
        bias: [out] in y's dtype, or None.
        out: dtype of y, "float16" or "float32"; "" for the weight's, and for float16 where that is FP8.
    """

    def __init__(self, blas: Blas, rows: int, weight: Weight, bias: Buffer | None = None, out: str = "") -> None:
        self.rows, self.weight, self.bias = rows, weight, bias
        self.out = out or ("float16" if weight.dtype == FP8 else weight.dtype)
        self.inner, self.outer = weight.shape
        if bias is not None and (bias.shape, bias.dtype) != ((self.outer,), self.out):
            raise InputError(f"a linear layer's bias is {bias}; expected {self.out} [{self.outer}].")
        self._blas = blas
        self._products = self._split()
        self._planned: dict[bool, list[Matmul]] = {}

    def plan(self, add: bool) -> list[Matmul]:
        """The layer's products, with a residual or without; planned when they are first asked for."""
        if add not in self._planned:
            self._planned[add] = [self._blas.plan(replace(product.shape, add=add)) for product in self._products]
        return self._planned[add]

    def run(self, x: Buffer, y: Buffer, stream: Stream, residual: Buffer | None = None) -> None:
        """x [rows, in] → y [rows, out] on the stream; residual [rows, out] may be y itself. x is FP8 where the weight is."""
        self._check("x", x, self.inner, self.weight.dtype)
        self._check("y", y, self.outer, self.out)
        if residual is not None:
            self._check("residual", residual, self.outer, self.out)
        for product, matmul in zip(self._products, self.plan(residual is not None), strict=True):
            skip = product.start * ITEM_BYTES[self.out]
            added, bias = (0 if b is None else b.address + skip for b in (residual, self.bias))
            matmul.run(x.address, product.weight, y.address + skip, stream, added, bias, product.scales)

    def _split(self) -> tuple[_Product, ...]:
        weight, with_bias = self.weight, self.bias is not None
        if not isinstance(weight, Fp8Weight):
            shape = Shape(self.rows, self.outer, self.inner, weight.dtype, self.out, bias=with_bias)
            return (_Product(shape, weight.address, (0, 0), 0),)
        whole = Shape(
            self.rows,
            self.outer,
            self.inner,
            FP8,
            self.out,
            transposed=True,
            bias=with_bias,
            lead=(0, 0, self.outer),
            fast=self._blas.fast_accumulation,
        )
        return tuple(
            _Product(
                replace(whole, n=part.stop - part.start),
                weight.codes.address + part.start * self.inner,
                (weight.input_scale.address, part.scale.address),
                part.start,
            )
            for part in weight.parts
        )

    def _check(self, name: str, buffer: Buffer, width: int, dtype: str) -> None:
        if (buffer.shape, buffer.dtype) != ((self.rows, width), dtype):
            raise InputError(f"a linear layer's {name} is {buffer}; expected {dtype} [{self.rows}, {width}].")
