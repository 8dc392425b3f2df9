"""Launches kernels for TensorRT plugins: on streams that TensorRT names by their address."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hart_edge.plugins import sources
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.plugins.kernel import Launch

from ..cuda import Device, Stream
from ..errors import GpuError
from ..kernels import KernelLibrary
from ..nvrtc import Compiler, unit

HOST = "cuda-python"
"""PyCUDA launches on its own streams only."""


class DeviceLauncher:
    """Implements the `Launcher` of `plugins/adapter.py`.

    Args:
        device: where the engine runs; GPU 0, opened at the first launch, if not given (a build needs none for TensorRT-RTX).
        library: of the device, with any kernels; one with those of the plugins if not given.
    """

    def __init__(self, device: Device | None = None, library: KernelLibrary | None = None) -> None:
        self._device, self._library = device, library
        self._streams: dict[int, Stream] = {}

    def load(self) -> None:
        """Load every kernel that a plugin may launch: none can be loaded while a graph is captured."""
        self._open().load()

    def __call__(self, launch: Launch, stream: int) -> None:
        device, library = self._opened(), self._open()
        if stream not in self._streams:
            self._streams[stream] = device.stream_at(stream)
        library.launch(launch, self._streams[stream])

    def _opened(self) -> Device:
        if self._device is None:
            self._device = Device(host=HOST)
        return self._device

    def _open(self) -> KernelLibrary:
        if self._library is None:
            kernels = [kernel for op in GRAPH_OPS.values() for kernel in op.kernels]
            self._library = KernelLibrary(self._opened(), sources(), kernels)
        return self._library


class PtxCompiler:
    """CUDA C++ of an entry to PTX for a GPU, with `sources()` to include.

    Args:
        capability: 10 · major + minor; of GPU 0 if not given.

    Raises GpuError for a driver that is older than the compiler: it reads PTX of its own version and older ones only.
    """

    def __init__(self, capability: int | None = None) -> None:
        self._compiler, self._headers = Compiler(), tempfile.TemporaryDirectory(prefix="hart-edge-")
        self._capability = self._of_gpu() if capability is None else capability

    def __call__(self, text: str) -> bytes:
        source = unit("entry.cu", sources() | {"entry.cu": text}, ())
        return self._compiler.ptx(source, self._capability, Path(self._headers.name))

    def _of_gpu(self) -> int:
        with Device(host=HOST) as device:
            info = device.info
        major, minor = self._compiler.version
        if info.driver_version < 1000 * major + 10 * minor:
            supported = f"{info.driver_version // 1000}.{info.driver_version % 1000 // 10}"
            raise GpuError(
                f"the NVIDIA driver reads PTX of CUDA {supported}; the compiler (NVRTC) writes that of {major}.{minor}.",
                "Install a current NVIDIA driver, or an older nvidia-cuda-nvrtc.",
            )
        return info.capability
