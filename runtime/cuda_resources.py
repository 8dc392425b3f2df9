"""What lives on a device: streams, events, graphs, memory, modules. Made by `Device`, never by hand.

Each is closed once, explicitly, by its `with` block or with its device. Copies, fills and launches are asynchronous.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from .drivers import CudaStatus, Handle
from .errors import GpuError, GpuLostError, InputError, KernelError

if TYPE_CHECKING:
    from .cuda import Device

Array = npt.NDArray[Any]
R = TypeVar("R", bound="Resource")
Size3 = tuple[int, int, int]

PLAIN_SHARED = 48 * 1024
"""Dynamic shared memory of a block that needs no opt-in, bytes."""


class Resource:
    """Something on a device that is closed once; its use afterwards is a GpuError."""

    def __init__(self, device: Device, handle: Handle, release: Callable[[Handle], None]) -> None:
        self.device = device
        self._handle = handle
        self._release = release
        device._owned[id(self)] = self

    @property
    def handle(self) -> Handle:
        if self._handle is None:
            raise GpuError(f"a {type(self).__name__} was used after it was closed.")
        return self._handle

    def _take(self) -> Handle:
        handle, self._handle = self._handle, None
        return handle

    def close(self) -> None:
        """Free it; waits for nothing, so synchronise the streams that use it before. Idempotent.

        On a lost GPU there is nothing to free, and nothing is raised.
        """
        if self._handle is None:
            return
        self.device._owned.pop(id(self), None)
        try:
            # The reference goes to the host with nothing kept here: PyCUDA destroys with the last one.
            self.device.call(f"closing a {type(self).__name__}", lambda: self._release(self._take()))
        except GpuLostError:
            self._handle = None

    def __enter__(self: R) -> R:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Event(Resource):
    """A point in a stream's work."""

    def record(self, stream: Stream) -> None:
        self.device.call("recording an event", self.device.driver.record, self.handle, stream.handle)

    def synchronize(self) -> None:
        self.device.call("waiting for an event", self.device.driver.synchronize_event, self.handle)

    def since(self, start: Event) -> float:
        """Milliseconds from `start` to this event; both must have happened."""
        return self.device.call("timing", self.device.driver.elapsed, start.handle, self.handle)


class Stream(Resource):
    """Work in order."""

    @property
    def address(self) -> int:
        """What other libraries take as a cudaStream_t."""
        return self.device.driver.stream_address(self.handle)

    def synchronize(self) -> None:
        """Wait for its work; a fault of an earlier kernel shows here."""
        self.device.call("waiting for a stream", self.device.driver.synchronize_stream, self.handle)

    def wait(self, event: Event) -> None:
        """Later work of this stream waits for the event; the host does not."""
        self.device.call("ordering streams", self.device.driver.wait, self.handle, event.handle)

    def capture(self, record: Callable[[], None]) -> Graph:
        """The graph of what `record` launches on this stream; nothing runs. Allocations in `record` are errors."""
        driver, handle = self.device.driver, self.handle
        with self.device.active():
            self.device.call("starting a capture", driver.begin_capture, handle)
            try:
                record()
            except BaseException:
                with suppress(CudaStatus):  # the first error is the one that counts; the stream must leave capture mode
                    driver.destroy_capture(driver.end_capture(handle))
                raise
            capture = self.device.call("ending a capture", driver.end_capture, handle)
            try:
                graph = self.device.call("making a graph", driver.instantiate, capture)
            finally:
                self.device.call("freeing a capture", driver.destroy_capture, capture)
        return Graph(self.device, graph, driver.destroy_graph)


class Graph(Resource):
    """Captured work, launched as one."""

    def launch(self, stream: Stream) -> None:
        self.device.call("launching a graph", self.device.driver.launch_graph, self.handle, stream.handle)


@dataclass
class MemoryUse:
    """Device memory that one device's buffers take, in bytes; what other libraries allocate is not in it.

    Attributes:
        allocations: how many there were, freed ones included.
        bytes: in use now. peak: the most so far.
    """

    allocations: int = 0
    bytes: int = 0
    peak: int = 0

    def take(self, size: int) -> None:
        self.allocations += 1
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def give(self, size: int) -> None:
        self.bytes -= size


class DeviceBuffer(Resource):
    """Device memory: `address`, `size` in bytes. Copies and fills are asynchronous, in the order of their stream."""

    def __init__(self, device: Device, handle: Handle, size: int) -> None:
        super().__init__(device, handle, device.driver.free)
        self.address = int(handle)
        self.size = size
        device.use.take(size)

    def close(self) -> None:
        if self._handle is not None:
            self.device.use.give(self.size)
        super().close()

    def upload(self, array: Array, stream: Stream, offset: int = 0) -> None:
        """Host to device. A pinned array must stay unchanged until the stream gets there; any other is read at once."""
        start = self._span(array.nbytes, offset)
        self.device.call("copying to the GPU", self.device.driver.upload, start, _contiguous(array), stream.handle)

    def download(self, array: Array, stream: Stream, offset: int = 0) -> None:
        """Device to host; the array is filled once the stream is synchronised."""
        start = self._span(array.nbytes, offset)
        self.device.call("copying from the GPU", self.device.driver.download, _contiguous(array), start, stream.handle)

    def copy_from(self, source: DeviceBuffer, stream: Stream) -> None:
        """All of `source` to the start of this one, on the device."""
        start = self._span(source.size, 0)
        self.device.call("copying on the GPU", self.device.driver.copy, start, source._span(source.size, 0), source.size, stream.handle)

    def fill(self, value: int, stream: Stream) -> None:
        """Every byte becomes `value`, 0 to 255."""
        self.device.call("filling a buffer", self.device.driver.fill, self._span(self.size, 0), value, self.size, stream.handle)

    def _span(self, size: int, offset: int) -> int:
        """Address of `size` bytes at `offset`; InputError if they are not inside the buffer, GpuError if it is closed."""
        if offset < 0 or size < 1 or offset + size > self.size:
            raise InputError(f"{size} bytes at {offset} are not inside a buffer of {self.size} bytes.")
        return int(self.handle) + offset


class PinnedArray(Resource):
    """Page-locked host memory as `array`, which must not be touched after closing."""

    def __init__(self, device: Device, memory: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        super().__init__(device, memory, device.driver.unpin)
        self._shape, self._dtype = shape, dtype

    @property
    def array(self) -> Array:
        memory: npt.NDArray[np.uint8] = self.handle
        return memory.view(self._dtype).reshape(self._shape)


class Module(Resource):
    """Compiled kernels on the device."""

    def __init__(self, device: Device, handle: Handle, release: Callable[[Handle], None]) -> None:
        super().__init__(device, handle, release)
        self._functions: list[Function] = []

    def function(self, name: str) -> Function:
        """The kernel of that lowered name, usable until the module is closed."""
        handle = self.device.call(f"finding the kernel {name}", self.device.driver.function, self.handle, name)
        function = Function(self.device, name, handle)
        self._functions.append(function)
        return function

    def close(self) -> None:
        for function in self._functions:  # under PyCUDA a function keeps its module alive
            function.close()
        super().close()


class Function:
    """A kernel, ready to be launched; its module owns it."""

    def __init__(self, device: Device, name: str, handle: Handle) -> None:
        self.name = name
        self._device = device
        self._handle = handle
        self._shared = PLAIN_SHARED

    @property
    def registers(self) -> int:
        """Per thread."""
        return self._device.call(f"asking {self.name} for its registers", self._device.driver.registers, self.handle)

    @property
    def handle(self) -> Handle:
        if self._handle is None:
            raise GpuError(f"the kernel {self.name} was used after its module was closed.")
        return self._handle

    def launch(self, stream: Stream, grid: Size3, block: Size3, shared: int, arguments: bytes) -> None:
        """Launch on the stream.

        Args:
            shared: bytes of dynamic shared memory; KernelError if a block of this GPU cannot have that much.
            arguments: as `pack` of runtime/kernels.py lays them out.
        """
        self._allow(shared)
        launch = self._device.driver.launch
        self._device.call(f"launching {self.name}", launch, self.handle, grid, block, shared, stream.handle, arguments)

    def _allow(self, shared: int) -> None:
        info = self._device.info
        if shared > info.shared_limit:
            raise KernelError(f"{self.name} needs {shared} bytes of shared memory a block; {info.name} has {info.shared_limit}.")
        if shared > self._shared:
            self._device.call(f"giving {self.name} shared memory", self._device.driver.allow_shared, self.handle, shared)
            self._shared = shared

    def close(self) -> None:
        self._handle = None


def _contiguous(array: Array) -> Array:
    if not array.flags.c_contiguous:
        raise InputError(f"an array of shape {array.shape} and strides {array.strides} is not contiguous; expected C order.")
    return array
