"""hart-edge runtime: prompt to picture with a bundle of engines. Torch-free."""

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
