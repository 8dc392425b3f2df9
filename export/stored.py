"""How a bundle's weights file stores a weight: as a float, or as 8-bit numbers with a scale, and possibly with powers of two moved
between channels. Written by `hart_edge.calibration`, read back by verification.

    real value of NAME = stored · NAME.scale                 (NAME.scale: [] or one per output channel)
    what the checkpoint has = real · 2^−NAME.rows[:, None] · 2^−NAME.columns

Rows are made up for by the columns of the weights before them, or, where there are none, by ENGINE.TENSOR.factor, 2^−rows as float32,
that the graph multiplies an activation by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SCALE, INPUT_SCALE, OUTPUT_SCALE, ROWS, COLUMNS = "scale", "input_scale", "output_scale", "rows", "columns"

# The step between neighbouring stored numbers: of the scale, and of the value itself.
_STEP = {torch.int8: (1.0, 0.0), torch.float8_e4m3fn: (2.0**-9, 2.0**-3)}
_ROUNDING = 1e-3  # of the comparison itself, which is made in float32


@dataclass(frozen=True)
class Stored:
    """One weight as it lies in the file, with what stands beside it."""

    value: Tensor
    scale: Tensor | None
    rows: Tensor | None
    columns: Tensor | None

    @classmethod
    def read(cls, name: str, names: set[str], get: Callable[[str], Tensor]) -> Stored:
        """names: all tensors of the file; get: reads one."""
        beside = (get(f"{name}.{part}") if f"{name}.{part}" in names else None for part in (SCALE, ROWS, COLUMNS))
        return cls(get(name), *beside)

    def moved(self, weight: Tensor) -> Tensor:
        """A weight of the checkpoint as this one was before it was rounded to 8 bits; in its own type, in which nothing rounds."""
        return move(weight, self.rows, self.columns)

    def differing(self, weight: Tensor) -> int:
        """How many numbers are not those of the checkpoint's weight, up to the rounding of the stored type.

        A float is the nearest one of its type; a number of 8 bits is one of the two neighbours (calibration/rounding.py).
        """
        want = self.moved(weight)
        if self.scale is None:
            return int((self.value != want.to(self.value.dtype)).sum())
        of_scale, of_value = _STEP[self.value.dtype]
        scale = along_outputs(self.scale, want.shape)
        error = (self.value.float() * scale - want.float()).abs()
        return int((~(error <= (of_scale * scale + of_value * want.float().abs()) * (1 + _ROUNDING))).sum())


def along_outputs(scale: Tensor, shape: torch.Size) -> Tensor:
    """A weight's scale shaped to multiply it: output channels come last in a matrix [in, out], first in a convolution's weight."""
    if scale.dim() == 0:
        return scale
    axis = 1 if len(shape) == 2 else 0
    return scale.view([-1 if k == axis else 1 for k in range(len(shape))])


def move(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """weight · 2^rows[:, None] · 2^columns, in the weight's type; rows and columns int8."""
    if columns is not None:
        weight = _scaled(weight, columns)
    return weight if rows is None else _scaled(weight.T, rows).T.contiguous()


def exponents_of(name: str, factors: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Rows and columns that stand beside a weight."""
    return factors.get(f"{name}.{ROWS}"), factors.get(f"{name}.{COLUMNS}")


def _scaled(weight: Tensor, exponent: Tensor) -> Tensor:
    return (weight.double() * torch.exp2(exponent.double())).to(weight.dtype)
