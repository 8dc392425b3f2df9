"""Which engine implementation a backend name stands for, and which one `auto` takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from .certificate import Certificate
from .drivers.libcuda import LIBRARY
from .engine import Engine
from .errors import InputError
from .memory import Memory
from .scale_loop import ScaleLoop
from .trt.packages import PACKAGES, package_for
from .trt.sidecar import find_engines

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


@runtime_checkable
class CertifiedBackend(Protocol):
    """A backend whose engines are other files than the bundle's, with a certificate of their own."""

    def certificate(self, bundle: Path) -> Certificate:
        """Of the engines that were built for the bundle."""


def _cuda(threads: int, low_vram: bool) -> Backend:
    from .fused.backend import FusedBackend  # loads nothing of CUDA unless it is asked for

    return FusedBackend(low_vram=low_vram)


def _ort_cuda(threads: int, low_vram: bool) -> Backend:
    from .ort_cuda import OrtCuda  # loads nothing of CUDA unless it is asked for

    return OrtCuda()


def _tensorrt(name: str) -> Callable[[int, bool], Backend]:
    def open_tensorrt(threads: int, low_vram: bool) -> Backend:
        from .trt.backend import TrtBackend  # loads nothing of CUDA unless it is asked for

        return TrtBackend(name)

    return open_tensorrt


def _cpu(threads: int, low_vram: bool) -> Backend:
    from .ort import OrtCpu  # ONNX Runtime, 0.15 s that a first picture by another backend does not need

    return OrtCpu(threads)


_OPENERS: dict[str, Callable[[int, bool], Backend]] = {
    **{name: _tensorrt(name) for name in PACKAGES},
    CUDA: _cuda,
    "ort-cuda": _ort_cuda,
    CPU: _cpu,
}
"""Every backend, in the order in which `auto` tries them: what was built for the bundle first, then the fastest."""

BACKENDS = (AUTO, *_OPENERS)


def check_backend(backend: str) -> str:
    """Returns the backend; InputError lists the ones there are."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
    return backend


def candidates(backend: str, low_vram: bool = False, bundle: Path | None = None) -> tuple[str, ...]:
    """The backends that a name stands for, in the order to try them; without an NVIDIA driver only the CPU, at no loss.

    TensorRT is among those of "auto" where its engines were built for the bundle; if both packages' were, the one that is
    meant for the card comes first. InputError for a backend that runs on the GPU and cannot spare its memory where low_vram
    asks for that.
    """
    sparing = (CUDA, CPU) if low_vram else tuple(_OPENERS)
    if check_backend(backend) == AUTO:
        return (*_built(sparing, bundle), *(name for name in sparing if name not in PACKAGES)) if has_driver() else (CPU,)
    if backend not in sparing:
        raise InputError(f"backend {backend} was asked to spare GPU memory (low_vram); expected one of {', '.join(sparing)}.")
    return (backend,)


def _built(names: Iterable[str], bundle: Path | None) -> list[str]:
    """Of the names, those whose engines were built for the bundle."""
    found = [name for name in names if name in PACKAGES and bundle is not None and find_engines(bundle, name) is not None]
    if len(found) > 1:
        from .doctor.gpu import look_at_gpus  # asks the driver alone

        gpus = look_at_gpus().gpus
        found.sort(key=lambda name: not gpus or name != package_for(gpus[0].capability))
    return found


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
