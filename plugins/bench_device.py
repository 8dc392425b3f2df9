"""Times of launches on a device: GPU events around a CUDA graph of many of them, over buffers that no cache can hold.

Knows nothing of what the launches compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from hart_edge.runtime.cuda import Device, Graph, Stream
from hart_edge.runtime.kernels import KernelLibrary

from .bench_case import Case, Shape, Tensors
from .kernel import ITEM_BYTES, Buffer, Launch
from .quantize import Array

WORKING_SET = 512 * 2**20
"""Bytes that the launches of a graph go through in turn: over twice the L2 cache of any card so far (126 MB)."""
COPY_BYTES = 2**30
LEAST_LAUNCHES = 10
RUNS = 7
LEAST_MILLISECONDS = 20.0
"""That the graphs of a case take together: a graph of short launches is over in 0.2 ms, and seven are a moment of the card's."""
FINITE = 0x3C
"""Byte that untold content is filled with: 1.06 in float16, 0.0115 in float32; nothing slow, nothing infinite."""


@dataclass(frozen=True)
class Timing:
    """A case on a device.

    Attributes:
        microseconds: per run of the operator, the median of all graphs.
        moved: bytes that it must move.
    """

    case: Case
    microseconds: float
    moved: int

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.moved / self.microseconds * 1e6


def copy_rate(device: Device, size: int = COPY_BYTES) -> float:
    """Bytes per second, read and written, of the driver's copy of `size` bytes on the device; the best of several."""
    with device.stream() as stream, device.buffer(size) as source, device.buffer(size) as target:
        source.fill(FINITE, stream)
        target.copy_from(source, stream)
        best = min(_milliseconds(device, stream, lambda: target.copy_from(source, stream)) for _ in range(RUNS))
    return 2 * size / best * 1e3


def time_case(device: Device, library: KernelLibrary, case: Case) -> Timing:
    """Median over several graphs of a launch's share of the graph's time."""
    with ExitStack() as stack:
        stream = stack.enter_context(device.stream())
        sets, moved = _sets(device, stream, case, stack)
        rounds = [sets[i % len(sets)] for i in range(max(len(sets), LEAST_LAUNCHES))]

        def record() -> None:
            for launches in rounds:
                for launch in launches:
                    library.launch(launch, stream)

        record()  # loads the kernels, which a capture cannot
        graph = stack.enter_context(stream.capture(record))
        return Timing(case, 1e3 * _median(device, stream, graph) / len(rounds), moved)


def _median(device: Device, stream: Stream, graph: Graph) -> float:
    graph.launch(stream)
    times: list[float] = []
    while len(times) < RUNS or sum(times) < LEAST_MILLISECONDS:
        times.append(_milliseconds(device, stream, lambda: graph.launch(stream)))
    return median(times)


def _milliseconds(device: Device, stream: Stream, work: Callable[[], None]) -> float:
    with device.event() as start, device.event() as end:
        start.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        return end.since(start)


def _sets(device: Device, stream: Stream, case: Case, stack: ExitStack) -> tuple[list[tuple[Launch, ...]], int]:
    """The case's launches over as many sets of buffers as fill the working set, and the bytes that one of them moves."""

    def place(shape: Shape, dtype: str, content: Array | None) -> Buffer:
        memory = stack.enter_context(device.buffer(math.prod(shape) * ITEM_BYTES[dtype]))
        if content is None:
            memory.fill(FINITE, stream)
        else:
            memory.upload(content, stream)
        return Buffer(memory.address, shape, dtype)

    tensors = Tensors(place)
    sets = [case.launches(tensors)]
    moved = tensors.moved
    while tensors.total < WORKING_SET:
        sets.append(case.launches(tensors))
    return sets, moved
