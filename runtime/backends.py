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
from .scale_loop import ScaleLoop

AUTO, CUDA, CPU = "auto", "cuda", "cpu"


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


def _cuda(threads: int, low_vram: bool) -> Backend:
    from .fused.backend import FusedBackend  # loads nothing of CUDA unless it is asked for

    return FusedBackend(low_vram=low_vram)


def _ort_cuda(threads: int, low_vram: bool) -> Backend:
    from .ort_cuda import OrtCuda  # loads nothing of CUDA unless it is asked for

    return OrtCuda()


def _cpu(threads: int, low_vram: bool) -> Backend:
    from .ort import OrtCpu  # ONNX Runtime, 0.15 s that a first picture by another backend does not need

    return OrtCpu(threads)


_OPENERS: dict[str, Callable[[int, bool], Backend]] = {CUDA: _cuda, "ort-cuda": _ort_cuda, CPU: _cpu}
"""Every backend, the fastest first: the order in which `auto` tries them."""

BACKENDS = (AUTO, *_OPENERS)


def check_backend(backend: str) -> str:
    """Returns the backend; InputError lists the ones there are."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
    return backend


def candidates(backend: str, low_vram: bool = False) -> tuple[str, ...]:
    """The backends that a name stands for, in the order to try them; without an NVIDIA driver only the CPU, at no loss.

    InputError for a backend that runs on the GPU and cannot spare its memory where low_vram asks for that.
    """
    sparing = (CUDA, CPU) if low_vram else tuple(_OPENERS)
    if check_backend(backend) == AUTO:
        return sparing if has_driver() else (CPU,)
    if backend not in sparing:
        raise InputError(f"backend {backend} was asked to spare GPU memory (low_vram); expected one of {', '.join(sparing)}.")
    return (backend,)


def open_backend(backend: str, threads: int, low_vram: bool = False) -> Backend:
    """The backend of that name, not "auto".

    Raises MissingPackageError or GpuError, with the remedy, where it cannot work.
    """
    return _OPENERS[backend](threads, low_vram)


def has_driver() -> bool:
    """Whether the library of the NVIDIA driver is there; takes well under a millisecond where it is not."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True
