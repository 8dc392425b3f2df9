"""Pipelines of the fused engine for tests: the bundled model, or any bundle, on the emulated GPU or on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emulated_scales import emulated_gpu

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.fused.backend import FusedBackend
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.pipeline import Pipeline

KINDS = ("emulated", "gpu")


@contextmanager
def opened(bundle: Bundle, context: FusedContext, low_vram: bool = False) -> Iterator[Pipeline]:
    """The bundle on a context that stays open."""
    backend = FusedBackend(context, low_vram)
    backend.close = backend.release  # type: ignore[method-assign]
    with Pipeline._open(bundle, backend) as pipe:
        yield pipe


def emulated_for(bundle: Bundle) -> FusedContext:
    """An emulated GPU with room for a bundle and some batches."""
    return emulated_gpu((640 << 20) + 3 * bundle.bytes)
