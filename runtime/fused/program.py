"""A sequence of GPU work, put together once and run for every picture: plainly at first, as a CUDA graph from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from hart_edge.plugins import Buffer, Launch, cast

from ..cuda import Graph
from .context import FusedContext
from .fp8 import Weight, fed
from .linear import Linear


class Program:
    """Work in order on the context's stream. All addresses and sizes are fixed when it is put together."""

    def __init__(self, context: FusedContext) -> None:
        self._context = context
        self._steps: list[Callable[[], None]] = []
        self._graph: Graph | None = None
        self._runs = 0

    def kernels(self, *launches: Launch) -> None:
        self._steps.extend(partial(self._context.library.launch, launch, self._context.stream) for launch in launches)

    def linear(self, layer: Linear, x: Buffer, y: Buffer, residual: Buffer | None = None) -> None:
        layer.plan(residual is not None)  # now, not while a picture is drawn
        self._steps.append(partial(layer.run, x, y, self._context.stream, residual))

    def quantized(self, weight: Weight, x: Buffer, spare: Buffer) -> Buffer:
        """x as a product takes it: x itself, or quantised into the memory of `spare`, a buffer of x's shape and type."""
        target, step = fed(weight, spare)
        if step is None:
            return x
        self.kernels(cast.launch(x, target, step))
        return target

    def copy(self, source: Buffer, target: Buffer) -> None:
        self._steps.append(partial(self._context.copy, source, target))

    def zero(self, buffer: Buffer) -> None:
        """All bytes of the buffer become 0."""
        self._steps.append(partial(self._context.zero, buffer))

    def call(self, steps: Iterable[Callable[[], None]]) -> None:
        """Anything else that only puts work on the stream."""
        self._steps.extend(steps)

    def run(self) -> None:
        """Put the work on the stream. The second run captures it, and every later one launches the graph.

        The first run stays plain: libraries load their kernels in it, which a capture does not allow.
        """
        self._runs += 1
        if self._runs == 2 and self._steps:
            self._graph = self._context.stream.capture(self.plain)
        if self._graph is not None:
            self._graph.launch(self._context.stream)
        else:
            self.plain()

    def plain(self) -> None:
        """The work piece by piece, without a graph."""
        with self._context.device.active():  # once, not for every piece
            for step in self._steps:
                step()

    def close(self) -> None:
        """Free the graph. Idempotent."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
