"""The CUDA driver through PyCUDA 2026.1, on its primary-context mode; graphs through libcuda.py.

PyCUDA destroys streams, events and modules when the last reference to them goes, and only while their context is
current: so the `destroy_…` methods have nothing to do, and `Device` drops its references with the context pushed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .faults import NO_DRIVER, UNKNOWN, CudaStatus
from .libcuda import LibCuda
from .protocol import Bytes, Handle, Size3

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
PIECE = 2**31  # PyCUDA takes the sizes of fills and of copies on the device as 32-bit numbers


class PyCuda:
    """ImportError without the package, CudaStatus without a driver."""

    name = "pycuda"

    def __init__(self, api: Any = None, library: LibCuda | None = None) -> None:
        try:
            self._api = api or importlib.import_module("pycuda.driver")
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # its extension is linked with libcuda
            raise CudaStatus("import pycuda.driver", NO_DRIVER, str(error)) from error
        self._library = library or LibCuda()
        self._do(self._api.init)

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._api.Error as error:  # "cuMemAlloc failed: out of memory"; a module's log may follow after " - "
            call, _, text = str(error).partition(" failed: ")
            name = self._library.names().get(text.partition(" - ")[0], UNKNOWN)
            raise CudaStatus(call, name, text) from error

    def version(self) -> int:
        return int(self._do(self._api.get_driver_version))

    def count(self) -> int:
        return int(self._do(self._api.Device.count))

    def _device(self, index: int) -> Any:
        return self._do(self._api.Device, index)

    def device_name(self, index: int) -> str:
        return str(self._do(self._device(index).name))

    def total_memory(self, index: int) -> int:
        return int(self._do(self._device(index).total_memory))

    def capability(self, index: int) -> int:
        major, minor = self._do(self._device(index).compute_capability)
        return 10 * int(major) + int(minor)

    def shared_limit(self, index: int) -> int:
        attribute = self._api.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        return int(self._do(self._device(index).get_attribute, attribute))

    def retain(self, index: int) -> Handle:
        return self._do(self._device(index).retain_primary_context)

    def release(self, index: int, context: Handle) -> None:
        # `detach` releases in any thread only what is on top of PyCUDA's own stack, and leaves the driver's stack as it is.
        self._do(context.push)
        try:
            self._library.pop()
        finally:  # a context left on PyCUDA's stack makes it abort the process at exit
            self._do(context.detach)

    def push(self, context: Handle) -> None:
        self._do(context.push)

    def pop(self) -> None:
        self._do(self._api.Context.pop)

    def synchronize(self) -> None:
        self._do(self._api.Context.synchronize)

    def memory(self) -> tuple[int, int]:
        free, total = self._do(self._api.mem_get_info)
        return int(free), int(total)

    def allocate(self, size: int) -> Handle:
        return self._do(self._api.mem_alloc, size)

    def free(self, memory: Handle) -> None:
        self._do(memory.free)

    def pin(self, size: int) -> Bytes:
        array: Bytes = self._do(self._api.pagelocked_empty, (size,), np.uint8)
        return array

    def unpin(self, array: Bytes) -> None:
        self._do(array.base.free)  # type: ignore[union-attr]

    def upload(self, target: int, source: npt.NDArray[Any], stream: Handle) -> None:
        self._do(self._api.memcpy_htod_async, target, source, stream)

    def download(self, target: npt.NDArray[Any], source: int, stream: Handle) -> None:
        self._do(self._api.memcpy_dtoh_async, target, source, stream)

    def copy(self, target: int, source: int, size: int, stream: Handle) -> None:
        for start, length in _pieces(size):
            self._do(self._api.memcpy_dtod_async, target + start, source + start, length, stream)

    def fill(self, target: int, value: int, size: int, stream: Handle) -> None:
        for start, length in _pieces(size):
            self._do(self._api.memset_d8_async, target + start, value, length, stream)

    def create_stream(self) -> Handle:
        return self._do(self._api.Stream, NON_BLOCKING)

    def destroy_stream(self, stream: Handle) -> None:
        pass

    def stream_address(self, stream: Handle) -> int:
        return int(stream.handle)

    def stream_at(self, address: int) -> Handle:
        raise CudaStatus("stream_at", "CUDA_ERROR_NOT_SUPPORTED", "PyCUDA has no streams but its own")

    def synchronize_stream(self, stream: Handle) -> None:
        self._do(stream.synchronize)

    def wait(self, stream: Handle, event: Handle) -> None:
        self._do(stream.wait_for_event, event)

    def create_event(self) -> Handle:
        return self._do(self._api.Event)

    def destroy_event(self, event: Handle) -> None:
        pass

    def record(self, event: Handle, stream: Handle) -> None:
        self._do(event.record, stream)

    def synchronize_event(self, event: Handle) -> None:
        self._do(event.synchronize)

    def elapsed(self, start: Handle, end: Handle) -> float:
        return float(self._do(end.time_since, start))

    def load(self, cubin: bytes) -> Handle:
        return self._do(self._api.module_from_buffer, cubin)

    def unload(self, module: Handle) -> None:
        pass

    def function(self, module: Handle, name: str) -> Handle:
        return self._do(module.get_function, name)

    def registers(self, function: Handle) -> int:
        return int(self._do(function.get_attribute, self._api.function_attribute.NUM_REGS))

    def allow_shared(self, function: Handle, size: int) -> None:
        self._do(function.set_attribute, self._api.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, size)

    def launch(self, function: Handle, grid: Size3, block: Size3, shared: int, stream: Handle, arguments: bytes) -> None:
        # What Function.__call__ does in the end; that would call cuFuncSetBlockShape first, which CUDA has deprecated.
        self._do(function._launch_kernel, grid, block, arguments, shared, stream)

    def begin_capture(self, stream: Handle) -> None:
        self._library.begin_capture(stream.handle)

    def end_capture(self, stream: Handle) -> Handle:
        return self._library.end_capture(stream.handle)

    def destroy_capture(self, capture: Handle) -> None:
        self._library.destroy_capture(capture)

    def instantiate(self, capture: Handle) -> Handle:
        return self._library.instantiate(capture)

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        self._library.launch_graph(graph, stream.handle)

    def destroy_graph(self, graph: Handle) -> None:
        self._library.destroy_graph(graph)


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """Start and length of the pieces of a transfer."""
    return ((start, min(PIECE, size - start)) for start in range(0, size, PIECE))
