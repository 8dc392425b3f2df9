"""hart-edge runtime: prompt to picture with a bundle of engines. Torch-free.

Names are imported when they are first used: who needs an error class or the driver does not load ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .certificate import Certificate, read_certificate
    from .errors import (
        BundleError,
        CheckpointError,
        EngineError,
        GpuError,
        GpuLostError,
        GpuMemoryError,
        HartError,
        HartWarning,
        InputError,
        KernelError,
        MissingPackageError,
    )
    from .image import read_recipe, save_png
    from .noise import Noise, PhiloxNoise, RecordedNoise
    from .options import Options
    from .pipeline import Pipeline, Step
    from .timing import StageTimes

_HOMES = {
    "bundle": ("Bundle",),
    "certificate": ("Certificate", "read_certificate"),
    "errors": (
        "BundleError",
        "CheckpointError",
        "EngineError",
        "GpuError",
        "GpuLostError",
        "GpuMemoryError",
        "HartError",
        "HartWarning",
        "InputError",
        "KernelError",
        "MissingPackageError",
    ),
    "image": ("read_recipe", "save_png"),
    "noise": ("Noise", "PhiloxNoise", "RecordedNoise"),
    "options": ("Options",),
    "pipeline": ("Pipeline", "Step"),
    "timing": ("StageTimes",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Bundle",
    "BundleError",
    "Certificate",
    "CheckpointError",
    "EngineError",
    "GpuError",
    "GpuLostError",
    "GpuMemoryError",
    "HartError",
    "HartWarning",
    "InputError",
    "KernelError",
    "MissingPackageError",
    "Noise",
    "Options",
    "PhiloxNoise",
    "Pipeline",
    "RecordedNoise",
    "StageTimes",
    "Step",
    "read_certificate",
    "read_recipe",
    "save_png",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
