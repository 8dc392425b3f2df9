"""`y = x @ weight (+ bias) (+ residual)` for a fixed number of rows: one cuBLASLt product with everything in its epilogue."""

from __future__ import annotations

from hart_edge.plugins.kernel import Buffer

from ..cuda import Stream
from ..errors import InputError
from .blas import Blas, Matmul, Shape


class Linear:
    """A linear layer over `rows` rows.

    Sums are float32, y is rounded once; float32 layers are true float32. cuBLASLt has no SiLU: an activation is a kernel's.

    Args:
        blas: plans and runs it; layers of one shape share a plan.
        rows: of x and y.
        weight: [in, out], as the bundle stores it.
        bias: [out] in y's dtype, or None.
        out: dtype of y, "float16" or "float32"; "" for the weight's.
    """

    def __init__(self, blas: Blas, rows: int, weight: Buffer, bias: Buffer | None = None, out: str = "") -> None:
        self.rows, self.weight, self.bias, self.out = rows, weight, bias, out or weight.dtype
        self.inner, self.outer = weight.shape
        if bias is not None and (bias.shape, bias.dtype) != ((self.outer,), self.out):
            raise InputError(f"a linear layer's bias is {bias}; expected {self.out} [{self.outer}].")
        self._blas = blas

    def plan(self, add: bool) -> Matmul:
        """The layer's product, with a residual or without; planned when it is first asked for."""
        shape = Shape(self.rows, self.outer, self.inner, self.weight.dtype, self.out, bias=self.bias is not None, add=add)
        return self._blas.plan(shape)

    def run(self, x: Buffer, y: Buffer, stream: Stream, residual: Buffer | None = None) -> None:
        """x [rows, in] → y [rows, out] on the stream; residual [rows, out] may be y itself."""
        self._check("x", x, self.inner, self.weight.dtype)
        self._check("y", y, self.outer, self.out)
        if residual is not None:
            self._check("residual", residual, self.outer, self.out)
        added, bias = (0 if b is None else b.address for b in (residual, self.bias))
        self.plan(residual is not None).run(x.address, self.weight.address, y.address, stream, added, bias)

    def _check(self, name: str, buffer: Buffer, width: int, dtype: str) -> None:
        if (buffer.shape, buffer.dtype) != ((self.rows, width), dtype):
            raise InputError(f"a linear layer's {name} is {buffer}; expected {dtype} [{self.rows}, {width}].")
