"""How far the dimensions of an engine vary, from the sizes of the model. Knows nothing of TensorRT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.spec import REEXPORT, ModelSpec

Range = tuple[int, int, int]  # smallest, the one to be fast at, largest
Shape = tuple[int | str, ...]  # a string is a dimension that varies, such as "B" or "2*B"

_SYMBOL = re.compile(r"(?:(\d+)\*)?([A-Za-z]+)")


def dimension_ranges(spec: ModelSpec, batch: int) -> dict[str, Range]:
    """The dimensions of `export/engines.py` for 1 to `batch` pictures: fastest at the last scale of one picture.

    B pictures, R rows of the transformer (B at scale 0, else 2B), L tokens of a scale, p and q sides of a scale and of
    the next, `rows` of the diffusion (all tokens of the last scale).
    """
    tokens = [spec.input_tokens(scale) for scale in range(spec.scales)]
    last = spec.grid**2
    return {
        "B": (1, 1, batch),
        "R": (1, 2, 2 * batch),
        "L": (min(tokens), last, max(tokens)),
        "p": (spec.patch_nums[0], spec.patch_nums[-2], spec.patch_nums[-2]),
        "q": (spec.patch_nums[1], spec.grid, spec.grid),
        "rows": (last, last, batch * last),
    }


def shape_range(shape: Shape, ranges: Mapping[str, Range]) -> tuple[tuple[int, ...], ...]:
    """The smallest, fastest and largest shape; EngineError for a dimension that is not in the table."""
    return tuple(zip(*(_dimension_range(dimension, ranges) for dimension in shape), strict=True))


def _dimension_range(dimension: int | str, ranges: Mapping[str, Range]) -> Range:
    if isinstance(dimension, int):
        return dimension, dimension, dimension
    match = _SYMBOL.fullmatch(dimension)
    if match is None or match[2] not in ranges:
        raise EngineError(f"an input has the unknown dimension {dimension!r}; expected one of {', '.join(ranges)}.", REEXPORT)
    factor = int(match[1] or 1)
    small, fast, large = ranges[match[2]]
    return factor * small, factor * fast, factor * large


def varies(shape: Sequence[int | str]) -> bool:
    return any(isinstance(dimension, str) for dimension in shape)
