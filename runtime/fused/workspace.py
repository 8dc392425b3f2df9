"""Device memory of an engine: every buffer by name, planned first, then allocated as one piece.

Components ask a `Memory` for their buffers and run the same code twice: with a `Plan`, which only counts, and with the
`Workspace` made from it. Buffers of different phases share memory, so a phase must expect anything in its buffers when it
starts; buffers without a phase keep their contents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from hart_edge.plugins.kernel import ITEM_BYTES, Buffer

from ..cuda import Device, DeviceBuffer, Stream
from ..errors import GpuMemoryError, InputError

ALIGNMENT = 256
REMEDY = (
    "Use --low-vram (`Pipeline.load(..., low_vram=True)`), a smaller batch or the CPU, or close other programs that use the GPU; "
    "`hart-edge bench --plan` shows what is needed."
)


class Memory(Protocol):
    """Where components get their buffers from."""

    def buffer(self, name: str, shape: tuple[int, ...], dtype: str, phase: str = "") -> Buffer:
        """The buffer of that name. A name that is asked for again must have the same shape, dtype and phase."""


@dataclass(frozen=True)
class Entry:
    """One planned buffer; offset: from the start of its phase."""

    shape: tuple[int, ...]
    dtype: str
    phase: str
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Plan:
    """Counts what components ask for; nothing is allocated. Addresses of its buffers are only offsets.

    Attributes:
        entries: every buffer by name, in the order of asking.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._ends: dict[str, int] = {"": 0}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: str, phase: str = "") -> Buffer:
        """See `Memory.buffer`."""
        if min(shape, default=0) < 1 or dtype not in ITEM_BYTES:
            raise InputError(f"buffer {name} of {dtype} {list(shape)} was asked for; expected sizes of 1 or more of {sorted(ITEM_BYTES)}.")
        known = self.entries.get(name)
        if known is None:
            known = self.entries[name] = Entry(shape, dtype, phase, self._ends.get(phase, 0))
            self._ends[phase] = aligned(known.offset + known.bytes)
        check_same(name, known, shape, dtype, phase)
        return Buffer(self.offset(name), shape, dtype)

    def offset(self, name: str) -> int:
        """Of a buffer in the whole piece; final only when planning has ended."""
        entry = self.entries[name]
        return entry.offset + (self._ends[""] if entry.phase else 0)

    @property
    def bytes(self) -> int:
        """Size of the whole piece: what lives on, and the largest phase."""
        return self._ends[""] + max((end for phase, end in self._ends.items() if phase), default=0)

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of every phase; "" is what lives on."""
        return dict(self._ends)


class Workspace:
    """The memory of a plan on a device, allocated once; `what` is named in errors.

    Raises GpuMemoryError, with what was asked for and what is free, when it does not fit.
    """

    def __init__(self, device: Device, stream: Stream, plan: Plan, what: str = "workspace") -> None:
        self.plan = plan
        self._arena = allocate(device, max(plan.bytes, 1), what)
        self._arena.fill(0, stream)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: str, phase: str = "") -> Buffer:
        """See `Memory.buffer`; InputError for a name that was not planned."""
        if name not in self.plan.entries:
            raise InputError(f"buffer {name} was not planned; planned are {', '.join(self.plan.entries)}.")
        check_same(name, self.plan.entries[name], shape, dtype, phase)
        return Buffer(self._arena.address + self.plan.offset(name), shape, dtype)

    def close(self) -> None:
        """Free it. Idempotent."""
        self._arena.close()


def allocate(device: Device, size: int, what: str) -> DeviceBuffer:
    """Device memory for one purpose; GpuMemoryError names it, the bytes asked for, what is free, and the remedies."""
    try:
        return device.buffer(size)
    except GpuMemoryError as error:
        raise GpuMemoryError(f"there is too little GPU memory for the {what}: {error.message}", REMEDY) from error


def check_same(name: str, entry: Entry, shape: tuple[int, ...], dtype: str, phase: str) -> None:
    """InputError unless a buffer is asked for as it was planned."""
    if (entry.shape, entry.dtype, entry.phase) != (shape, dtype, phase):
        raise InputError(
            f"buffer {name} is {entry.dtype} {list(entry.shape)} of phase {entry.phase!r}; "
            f"{dtype} {list(shape)} of phase {phase!r} was asked for."
        )


def aligned(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
