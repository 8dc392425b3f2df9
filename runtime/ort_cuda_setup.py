"""What ONNX Runtime needs before it can use an NVIDIA GPU: its own GPU package, a driver that fits, CUDA's libraries."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import onnxruntime as ort

from .cuda import DeviceInfo
from .errors import GpuError, MissingPackageError

PROVIDER = "CUDAExecutionProvider"
LIBRARIES = ("cudart", "cublasLt", "cublas", "curand", "cufft")
"""In the order of their dependence, by the names of cuda-pathfinder."""

CUDNN = "bin/cudnn64_9.dll" if sys.platform == "win32" else "lib/libcudnn.so.9"
"""In the folder of the package nvidia-cudnn-cu13."""

RESTORE = "pip install --force-reinstall --no-deps onnxruntime-gpu"
"""onnxruntime and onnxruntime-gpu own the same folder; whichever is installed last is the one that runs."""


def check_provider() -> None:
    """MissingPackageError if this is the CPU build of ONNX Runtime."""
    if PROVIDER in ort.get_available_providers():
        return
    if _installed("onnxruntime-gpu"):
        hidden = "the package onnxruntime was installed over onnxruntime-gpu and hides its CUDA provider."
        raise MissingPackageError(hidden, f"Run: {RESTORE}")
    raise MissingPackageError("this onnxruntime has no CUDA provider.", f"Run: pip install 'hart-edge[gpu]' && {RESTORE}")


def check_driver(info: DeviceInfo) -> None:
    """GpuError if the driver is older than the CUDA that ONNX Runtime was built for; minor versions do not matter."""
    built = str(getattr(ort, "cuda_version", ""))
    major, supported = built.partition(".")[0], info.driver_version // 1000
    if major.isdigit() and supported < int(major):
        raise GpuError(
            f"the NVIDIA driver supports CUDA {supported}; this onnxruntime-gpu needs CUDA {major}.",
            "Install a current NVIDIA driver and restart, or use the CPU.",
        )


def load_libraries() -> None:
    """Load CUDA's libraries from wherever they are installed, so that ONNX Runtime finds them loaded.

    Raises MissingPackageError for the first that cannot be loaded.
    """
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
    except ImportError as error:
        missing = "cuda-pathfinder, which finds CUDA's libraries, is not installed."
        raise MissingPackageError(missing, "Run: pip install 'hart-edge[gpu]'") from error
    for name in LIBRARIES:
        try:
            pathfinder.load_nvidia_dynamic_lib(name)
        except RuntimeError as error:
            raise _not_loaded(name, error) from error
    try:
        ctypes.CDLL(str(_cudnn()))
    except OSError as error:
        raise _not_loaded("cudnn", error) from error


def _cudnn() -> Path:
    """The library in its package, which not every release of cuda-pathfinder looks for; else its name alone."""
    try:
        spec = importlib.util.find_spec("nvidia.cudnn")
    except ModuleNotFoundError:
        spec = None
    folders = (spec and spec.submodule_search_locations) or ()
    found = [path for folder in folders if (path := Path(folder) / CUDNN).is_file()]
    return found[0] if found else Path(Path(CUDNN).name)


def _not_loaded(name: str, error: Exception) -> MissingPackageError:
    reason = str(error).strip().splitlines()[0]
    return MissingPackageError(f"CUDA's library {name} cannot be loaded: {reason}", "Run: pip install 'onnxruntime-gpu[cuda,cudnn]'")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
