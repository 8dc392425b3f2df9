"""Views of device buffers: the same memory under another shape. Knows nothing of who owns it."""

from __future__ import annotations

import math
from dataclasses import replace

from hart_edge.plugins.kernel import ITEM_BYTES, Buffer

from ..errors import InputError


def nbytes(buffer: Buffer) -> int:
    """Size in bytes."""
    return math.prod(buffer.shape) * ITEM_BYTES[buffer.dtype]


def view(buffer: Buffer, *shape: int) -> Buffer:
    """The same elements under another shape; InputError if the counts differ."""
    if math.prod(shape) != math.prod(buffer.shape):
        raise InputError(f"a view of {buffer} as {list(shape)} was asked for; expected as many elements.")
    return replace(buffer, shape=shape)


def rows(buffer: Buffer, start: int, stop: int) -> Buffer:
    """Entries start … stop − 1 along the first axis."""
    if not 0 <= start < stop <= buffer.shape[0]:
        raise InputError(f"entries {start} to {stop} of {buffer} were asked for; expected a part of its first axis.")
    row = math.prod(buffer.shape[1:]) * ITEM_BYTES[buffer.dtype]
    return replace(buffer, address=buffer.address + start * row, shape=(stop - start, *buffer.shape[1:]))


def entry(buffer: Buffer, index: int) -> Buffer:
    """Entry `index` along the first axis, without that axis."""
    part = rows(buffer, index, index + 1)
    return replace(part, shape=part.shape[1:])


def prefix(buffer: Buffer, *shape: int) -> Buffer:
    """The first elements of a buffer as a contiguous array of another shape: how scratch sized for the largest call is used."""
    if math.prod(shape) > math.prod(buffer.shape):
        raise InputError(f"{list(shape)} elements of {buffer} were asked for; expected at most what it holds.")
    return replace(buffer, shape=shape)
