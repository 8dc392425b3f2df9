"""The one door to CUDA: a device and what lives on it, each closed explicitly, with its `with` block or with its device.

    with Device() as device:
        stream, buffer = device.stream(), device.buffer(1 << 20)
        buffer.upload(array, stream)

Everything may be used from any thread: a call makes the device's primary context current for its own duration, and
`device.active()` for a block of calls. The context is the one of ONNX Runtime and TensorRT. Which package makes the
calls is the affair of `runtime/drivers/`, what lives on a device that of `runtime/cuda_resources.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from .cuda_resources import DeviceBuffer, Event, Function, Graph, MemoryUse, Module, PinnedArray, Resource, Stream
from .drivers import AUTO, CudaStatus, Driver, Handle, explain, open_driver
from .errors import GpuError, GpuLostError, InputError

__all__ = ["Device", "DeviceBuffer", "DeviceInfo", "Event", "Function", "Graph", "Module", "PinnedArray", "Stream", "devices"]

P = ParamSpec("P")
T = TypeVar("T")

LEAST_CAPABILITY = 75


@dataclass(frozen=True)
class DeviceInfo:
    """Facts about a device that do not change. Sizes in bytes."""

    index: int
    name: str
    capability: int  # 10 · major + minor
    memory: int
    shared_limit: int  # most dynamic shared memory of a block
    driver_version: int  # 1000 · major + 10 · minor: the newest CUDA that the driver supports


def devices(host: str | Driver = AUTO) -> list[DeviceInfo]:
    """All devices, those that are too old included; GpuError without a driver."""
    driver = open_driver(host) if isinstance(host, str) else host
    try:
        version = driver.version()
        return [
            DeviceInfo(i, driver.device_name(i), driver.capability(i), driver.total_memory(i), driver.shared_limit(i), version)
            for i in range(driver.count())
        ]
    except CudaStatus as status:
        raise explain(status, "listing the GPUs") from status


class Device:
    """A GPU and its primary context.

    Args:
        index: as nvidia-smi counts, unless CUDA_VISIBLE_DEVICES says otherwise.
        host: name of a CUDA host ("auto", "cuda-python", "pycuda") or one that is open.

    Attributes:
        use: memory that its buffers take.

    Raises GpuError without a driver or a device of that index, and for one older than SM75.
    """

    def __init__(self, index: int = 0, host: str | Driver = AUTO) -> None:
        self.driver = open_driver(host) if isinstance(host, str) else host
        self.info = _checked(devices(self.driver), index)
        self.lost = False
        self.use = MemoryUse()
        self._local = threading.local()
        self._owned: dict[int, Resource] = {}
        try:
            self._context: Handle = self.driver.retain(index)
        except CudaStatus as status:
            raise explain(status, f"opening {self.info.name}") from status

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current in this thread for the block; nests."""
        if getattr(self._local, "active", False):
            yield
            return
        if self._context is None:
            raise GpuError(f"{self.info.name} was used after it was closed.", "Open it again.")
        self._translated("making the GPU current", self.driver.push, self._context)
        self._local.active = True
        try:
            yield
        finally:
            self._local.active = False
            self._translated("leaving the GPU", self.driver.pop)

    def call(self, doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the driver with the context current; its refusal becomes a GpuError that says what was being done."""
        with self.active():
            return self._translated(doing, function, *args, **kwargs)

    def _translated(self, doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except CudaStatus as status:
            error = explain(status, doing, *self._memory_for(status))
            self.lost = self.lost or isinstance(error, GpuLostError)
            raise error from status

    def _memory_for(self, status: CudaStatus) -> tuple[int | None, int | None]:
        if status.name == "CUDA_ERROR_OUT_OF_MEMORY":
            with suppress(CudaStatus):
                return self.driver.memory()
        return None, None

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        return self.call("asking for free memory", self.driver.memory)

    def synchronize(self) -> None:
        """Wait for all work of the context, other libraries' included."""
        self.call("waiting for the GPU", self.driver.synchronize)

    def stream(self) -> Stream:
        """A stream that does not wait for the default stream."""
        return Stream(self, self.call("making a stream", self.driver.create_stream), self.driver.destroy_stream)

    def stream_at(self, address: int) -> Stream:
        """A stream that another library made and destroys; GpuError under PyCUDA, which takes none."""
        return Stream(self, self.call("taking a stream", self.driver.stream_at, address), lambda handle: None)

    def event(self) -> Event:
        return Event(self, self.call("making an event", self.driver.create_event), self.driver.destroy_event)

    def buffer(self, size: int) -> DeviceBuffer:
        """Uninitialised device memory of `size` bytes; GpuMemoryError names what was asked for and what is free.

        A plain allocation, not from a pool: engines allocate once, when they load, and graphs hold the addresses.
        """
        if size < 1:
            raise InputError(f"a buffer of {size} bytes was asked for; expected at least 1.")
        return DeviceBuffer(self, self.call(f"allocating {_mebibytes(size)} on {self.info.name}", self.driver.allocate, size), size)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> PinnedArray:
        """Page-locked host memory as an array, uninitialised: copies from and to it do not hold up the host."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size < 1:
            raise InputError(f"a pinned array of shape {shape} was asked for; expected at least one element.")
        return PinnedArray(self, self.call(f"pinning {_mebibytes(size)} of host memory", self.driver.pin, size), shape, dtype)

    def module(self, cubin: bytes) -> Module:
        """Kernels compiled for this device; GpuError if the code does not fit it."""
        return Module(self, self.call("loading kernels", self.driver.load, cubin), self.driver.unload)

    def close(self) -> None:
        """Close everything that is still open on the device, newest first, then let go of the context. Idempotent."""
        if self._context is None:
            return
        for resource in reversed(list(self._owned.values())):
            resource.close()
        context, self._context = self._context, None
        with suppress(CudaStatus):  # nothing is left to be done about a context that cannot be released
            self.driver.release(self.info.index, context)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _checked(found: list[DeviceInfo], index: int) -> DeviceInfo:
    if not found:
        raise GpuError("the NVIDIA driver sees no GPU.", "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU.")
    names = ", ".join(f"{device.index} {device.name}" for device in found)
    if not 0 <= index < len(found):
        raise GpuError(f"there is no GPU {index}; there are: {names}.")
    info = found[index]
    if info.capability < LEAST_CAPABILITY:
        raise GpuError(
            f"{info.name} has compute capability SM{info.capability}; expected SM{LEAST_CAPABILITY} (Turing, 2018) or newer.",
            "Use another GPU or the CPU.",
        )
    return info


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
