"""The CUDA driver through cuda-bindings (the package `cuda-bindings`, module `cuda.bindings.driver`), 12 or 13."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .faults import NO_DRIVER, OLD_DRIVER, CudaStatus
from .protocol import Bytes, Handle, Size3

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit waiting for the default stream, which ONNX Runtime may use


class CudaPython:
    """Every method is one call of the driver. ImportError without the package, CudaStatus without a driver."""

    name = "cuda-python"

    def __init__(self, api: Any = None) -> None:
        self._api = api or importlib.import_module("cuda.bindings.driver")
        try:
            self._do(self._api.cuInit, 0)
        except RuntimeError as error:  # cuda-pathfinder found no libcuda
            raise CudaStatus("cuInit", NO_DRIVER, str(error)) from error

    def _do(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """The call's result; CudaStatus unless the driver says CUDA_SUCCESS."""
        name = function.__name__
        try:
            status, *values = function(*arguments)
        except RuntimeError as error:
            if "not found" in str(error) and name in str(error):
                raise CudaStatus(name, OLD_DRIVER, str(error)) from error
            raise
        if int(status) != 0:
            _, text = self._api.cuGetErrorString(status)
            raise CudaStatus(name, status.name, text.decode() if text else "")
        return values[0] if len(values) == 1 else tuple(values)

    def version(self) -> int:
        return int(self._do(self._api.cuDriverGetVersion))

    def count(self) -> int:
        return int(self._do(self._api.cuDeviceGetCount))

    def device_name(self, index: int) -> str:
        name: bytes = self._do(self._api.cuDeviceGetName, 256, index)
        return name.partition(b"\0")[0].decode()

    def total_memory(self, index: int) -> int:
        return int(self._do(self._api.cuDeviceTotalMem, index))

    def capability(self, index: int) -> int:
        major = self._attribute("COMPUTE_CAPABILITY_MAJOR", index)
        return 10 * major + self._attribute("COMPUTE_CAPABILITY_MINOR", index)

    def shared_limit(self, index: int) -> int:
        return self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", index)

    def _attribute(self, name: str, index: int) -> int:
        attribute = getattr(self._api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._do(self._api.cuDeviceGetAttribute, attribute, index))

    def retain(self, index: int) -> Handle:
        return self._do(self._api.cuDevicePrimaryCtxRetain, index)

    def release(self, index: int, context: Handle) -> None:
        self._do(self._api.cuDevicePrimaryCtxRelease, index)

    def push(self, context: Handle) -> None:
        self._do(self._api.cuCtxPushCurrent, context)

    def pop(self) -> None:
        self._do(self._api.cuCtxPopCurrent)

    def synchronize(self) -> None:
        self._do(self._api.cuCtxSynchronize)

    def memory(self) -> tuple[int, int]:
        free, total = self._do(self._api.cuMemGetInfo)
        return int(free), int(total)

    def allocate(self, size: int) -> Handle:
        return self._do(self._api.cuMemAlloc, size)

    def free(self, memory: Handle) -> None:
        self._do(self._api.cuMemFree, memory)

    def pin(self, size: int) -> Bytes:
        address = int(self._do(self._api.cuMemHostAlloc, size, 0))
        array: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return array

    def unpin(self, array: Bytes) -> None:
        self._do(self._api.cuMemFreeHost, array.ctypes.data)

    def upload(self, target: int, source: npt.NDArray[Any], stream: Handle) -> None:
        self._do(self._api.cuMemcpyHtoDAsync, target, source.ctypes.data, source.nbytes, stream)

    def download(self, target: npt.NDArray[Any], source: int, stream: Handle) -> None:
        self._do(self._api.cuMemcpyDtoHAsync, target.ctypes.data, source, target.nbytes, stream)

    def copy(self, target: int, source: int, size: int, stream: Handle) -> None:
        self._do(self._api.cuMemcpyDtoDAsync, target, source, size, stream)

    def fill(self, target: int, value: int, size: int, stream: Handle) -> None:
        self._do(self._api.cuMemsetD8Async, target, value, size, stream)

    def create_stream(self) -> Handle:
        return self._do(self._api.cuStreamCreate, NON_BLOCKING)

    def destroy_stream(self, stream: Handle) -> None:
        self._do(self._api.cuStreamDestroy, stream)

    def stream_address(self, stream: Handle) -> int:
        return int(stream)

    def stream_at(self, address: int) -> Handle:
        return self._api.CUstream(address)

    def synchronize_stream(self, stream: Handle) -> None:
        self._do(self._api.cuStreamSynchronize, stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        self._do(self._api.cuStreamWaitEvent, stream, event, 0)

    def create_event(self) -> Handle:
        return self._do(self._api.cuEventCreate, 0)

    def destroy_event(self, event: Handle) -> None:
        self._do(self._api.cuEventDestroy, event)

    def record(self, event: Handle, stream: Handle) -> None:
        self._do(self._api.cuEventRecord, event, stream)

    def synchronize_event(self, event: Handle) -> None:
        self._do(self._api.cuEventSynchronize, event)

    def elapsed(self, start: Handle, end: Handle) -> float:
        return float(self._do(self._api.cuEventElapsedTime, start, end))

    def load(self, cubin: bytes) -> Handle:
        return self._do(self._api.cuModuleLoadData, cubin)

    def unload(self, module: Handle) -> None:
        self._do(self._api.cuModuleUnload, module)

    def function(self, module: Handle, name: str) -> Handle:
        return self._do(self._api.cuModuleGetFunction, module, name.encode())

    def registers(self, function: Handle) -> int:
        attribute = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS
        return int(self._do(self._api.cuFuncGetAttribute, attribute, function))

    def allow_shared(self, function: Handle, size: int) -> None:
        attribute = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._do(self._api.cuFuncSetAttribute, function, attribute, size)

    def launch(self, function: Handle, grid: Size3, block: Size3, shared: int, stream: Handle, arguments: bytes) -> None:
        size = ctypes.c_size_t(len(arguments))
        buffer = ctypes.c_char_p(arguments)
        # CU_LAUNCH_PARAM_BUFFER_POINTER (1), the buffer, CU_LAUNCH_PARAM_BUFFER_SIZE (2), its size, CU_LAUNCH_PARAM_END (0)
        extra = (ctypes.c_void_p * 5)(1, ctypes.cast(buffer, ctypes.c_void_p), 2, ctypes.addressof(size), 0)
        self._do(self._api.cuLaunchKernel, function, *grid, *block, shared, stream, 0, ctypes.addressof(extra))

    def begin_capture(self, stream: Handle) -> None:
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # other threads may allocate meanwhile
        self._do(self._api.cuStreamBeginCapture, stream, mode)

    def end_capture(self, stream: Handle) -> Handle:
        return self._do(self._api.cuStreamEndCapture, stream)

    def destroy_capture(self, capture: Handle) -> None:
        self._do(self._api.cuGraphDestroy, capture)

    def instantiate(self, capture: Handle) -> Handle:
        return self._do(self._api.cuGraphInstantiate, capture, 0)

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        self._do(self._api.cuGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        self._do(self._api.cuGraphExecDestroy, graph)
