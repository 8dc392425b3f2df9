"""Truth of the quantised outputs: `q = saturate(round(y · (1/scale)))`, round to even, in float32.

INT8 is symmetric (no zero point) and saturates to −128…127; FP8 is E4M3 (no infinity) and saturates to ±448.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hart_edge.runtime.errors import InputError

Array = npt.NDArray[Any]
QUANTIZED = ("int8", "float8_e4m3")
E4M3_MAX = np.float32(448)


def inverse_of(op: str, scale: float | None, quantized: bool) -> np.float32:
    """1/scale as the kernels take it; 1 for outputs that are not quantised. InputError when scale and output disagree."""
    if (scale is not None) != quantized or (scale is not None and not 0 < scale < np.inf):
        wanted = "a positive, finite scale" if quantized else "no scale"
        raise InputError(f"{op}: scale is {scale}; a{' quantised' if quantized else 'n unquantised'} output takes {wanted}.")
    return np.float32(1) if scale is None else np.float32(1) / np.float32(scale)


def quantize(y: Array, scale: float | None, dtype: str) -> Array:
    """y rounded to `dtype`: int8 as int8, float8_e4m3 as its uint8 codes; another dtype returns y."""
    if dtype not in QUANTIZED:
        return y
    scaled = y.astype(np.float32) * inverse_of("quantize", scale, True)
    return np.clip(np.rint(scaled), -128, 127).astype(np.int8) if dtype == "int8" else e4m3_codes(scaled)


def e4m3_codes(x: Array) -> npt.NDArray[np.uint8]:
    """Nearest E4M3 code, ties to the even code; x must be finite."""
    magnitude = np.minimum(np.abs(x.astype(np.float32)), E4M3_MAX)
    table = e4m3_values(np.arange(127, dtype=np.uint8))
    above = np.clip(np.searchsorted(table, magnitude), 1, 126)
    low, high = magnitude - table[above - 1], table[above] - magnitude
    up = (high < low) | ((high == low) & (above % 2 == 0))
    code: npt.NDArray[np.uint8] = (np.where(up, above, above - 1) | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)
    return code


def e4m3_values(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Codes to values: 1 sign, 4 exponent bits of bias 7, 3 mantissa bits, no infinity, 0x7f and 0xff not a number."""
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    value = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    value = np.where((codes & 0x7F) == 0x7F, np.nan, value)
    return np.where(codes & 0x80, -value, value).astype(np.float32)
