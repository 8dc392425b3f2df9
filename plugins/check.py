"""Checks and small sums that all launch builders share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hart_edge.runtime.errors import InputError

from .kernel import FLOATS, ITEM_BYTES, SHARED_LIMIT, Buffer, Pointer

VECTOR_BYTES = 16
MAX_GRID_X = 2**31 - 1
MAX_GRID_YZ = 65535


def expect(op: str, name: str, buffer: Buffer, shape: Sequence[int], dtypes: Iterable[str]) -> None:
    """InputError unless the buffer has this shape and one of these dtypes."""
    dtypes = tuple(dtypes)
    if tuple(buffer.shape) != tuple(shape) or buffer.dtype not in dtypes:
        raise InputError(f"{op}: {name} is {buffer}; expected {' or '.join(dtypes)} {list(shape)}.")


def expect_rank(op: str, name: str, buffer: Buffer, axes: str, dtypes: Iterable[str] = FLOATS) -> tuple[int, ...]:
    """The buffer's shape; InputError unless it has one positive size per axis name and one of these dtypes."""
    dtypes = tuple(dtypes)
    if len(buffer.shape) != len(axes.split()) or min(buffer.shape, default=0) < 1 or buffer.dtype not in dtypes:
        raise InputError(f"{op}: {name} is {buffer}; expected {' or '.join(dtypes)} [{', '.join(axes.split())}], every size 1 or more.")
    return tuple(buffer.shape)


def expect_true(op: str, condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"{op}: {message}")


def expect_shared(op: str, size: int, what: str) -> int:
    """The size in bytes; InputError when a block cannot have that much shared memory."""
    expect_true(op, size <= SHARED_LIMIT, f"{what} needs {size} bytes of shared memory; a block has {SHARED_LIMIT}.")
    return size


def lanes(width: int, item: str, buffers: Iterable[Buffer | None]) -> int:
    """Elements per access: 16 bytes of `item` when the width is a multiple and every buffer aligned for it, else 1."""
    count = VECTOR_BYTES // ITEM_BYTES[item]
    aligned = all(b.address % min(VECTOR_BYTES, count * ITEM_BYTES[b.dtype]) == 0 for b in buffers if b is not None)
    return count if width % count == 0 and aligned else 1


def threads_for(work: int, per_thread: int, most: int = 512) -> int:
    """Whole warps, enough for `work` items at `per_thread` each, at most `most`."""
    return min(most, max(32, 32 * ceil_div(work, 32 * per_thread)))


def block_of_heads(per_head: int, heads: int, most: int) -> tuple[int, int, int]:
    """A block whose rows take a head at a time, whole warps of at most `most` threads.

    A row has a power of two of lanes, enough for `per_head` items where 32 are, so that the lanes of a head sum by shuffles.
    """
    across = min(32, 1 << (per_head - 1).bit_length())
    in_a_warp = 32 // across
    down = min(ceil_div(heads, in_a_warp) * in_a_warp, most // across)
    return across, down, 1


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def pointer(buffer: Buffer | None) -> Pointer:
    """The buffer's address, or the null pointer."""
    return Pointer(0 if buffer is None else buffer.address)
