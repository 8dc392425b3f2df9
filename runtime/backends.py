"""Which engine implementation a backend name stands for, and which one `auto` takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from .drivers.libcuda import LIBRARY
from .engine import Engine
from .errors import InputError
from .memory import Memory
from .ort import OrtCpu
from .scale_loop import ScaleLoop

AUTO, CPU = "auto", "cpu"


class Backend(Protocol):
    """An implementation that is ready to load engines, and the memory that their tensors lie in."""

    name: str

    @property
    def memory(self) -> Memory: ...

    def open_engine(self, path: Path, name: str) -> Engine:
        """Load one engine file."""

    def close(self) -> None:
        """Let go of what the engines shared; they must be closed before. Idempotent."""


@runtime_checkable
class ResidentBackend(Protocol):
    """A backend with a scale loop of its own, in which less or nothing leaves the device."""

    def make_loop(self, loop: ScaleLoop) -> ScaleLoop:
        """The loop to run in place of `loop`, which runs the engines one by one."""


def _cuda(threads: int) -> Backend:
    from .fused.backend import FusedBackend  # loads nothing of CUDA unless it is asked for

    return FusedBackend()


def _ort_cuda(threads: int) -> Backend:
    from .ort_cuda import OrtCuda  # loads nothing of CUDA unless it is asked for

    return OrtCuda()


_OPENERS: dict[str, Callable[[int], Backend]] = {"cuda": _cuda, "ort-cuda": _ort_cuda, CPU: OrtCpu}
"""Every backend, the fastest first: the order in which `auto` tries them."""

BACKENDS = (AUTO, *_OPENERS)


def check_backend(backend: str) -> str:
    """Returns the backend; InputError lists the ones there are."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
    return backend


def candidates(backend: str) -> tuple[str, ...]:
    """The backends that a name stands for, in the order to try them; without an NVIDIA driver only the CPU, at no loss."""
    if check_backend(backend) != AUTO:
        return (backend,)
    return tuple(_OPENERS) if has_driver() else (CPU,)


def open_backend(backend: str, threads: int) -> Backend:
    """The backend of that name, not "auto".

    Raises MissingPackageError or GpuError, with the remedy, where it cannot work.
    """
    return _OPENERS[backend](threads)


def has_driver() -> bool:
    """Whether the library of the NVIDIA driver is there; takes well under a millisecond where it is not."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True
