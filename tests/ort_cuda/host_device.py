"""A device whose memory is the host's: what the GPU backend does with tensors runs without a GPU, engines included.

Its tensors are real `DeviceTensor`s, which NumPy refuses to touch; only the double's engines look behind the addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from hart_edge.plugins import Buffer, guided_sample
from hart_edge.plugins.guided_sample import Sampling
from hart_edge.runtime.device_memory import DeviceMemory
from hart_edge.runtime.engine import DeviceTensor, Engine, Tensors
from hart_edge.runtime.errors import GpuMemoryError
from hart_edge.runtime.ort import open_session, session_options
from hart_edge.runtime.ort_cuda import CUDA_GRAPHS, OrtCudaEngine


class HostBuffer:
    """Stands for a DeviceBuffer. New memory is filled with NaN of every float type, as a GPU's may hold anything."""

    def __init__(self, device: HostDevice, size: int) -> None:
        self._device, self.size = device, size
        self.memory = np.full(size, 0xFF, np.uint8)
        self.address = self.memory.ctypes.data

    def upload(self, array: np.ndarray, stream: Any, offset: int = 0) -> None:
        self._device.uploaded += array.nbytes
        self.memory[offset : offset + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: np.ndarray, stream: Any, offset: int = 0) -> None:
        ctypes.memmove(array.ctypes.data, self.address + offset, array.nbytes)

    def fill(self, value: int, stream: Any) -> None:
        self.memory[:] = value

    def close(self) -> None:
        self._device.used -= self.size


class HostDevice:
    """Attributes: bytes in use, the number of allocations and the bytes uploaded so far, and the most bytes that may be in use."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.used, self.allocations, self.uploaded, self.limit = 0, 0, 0, limit
        self.driver = SimpleNamespace(copy=lambda target, source, size, stream: ctypes.memmove(target, source, size))

    def buffer(self, size: int) -> HostBuffer:
        if self.used + size > self.limit:
            raise GpuMemoryError(f"allocating {size} bytes failed.")
        self.used += size
        self.allocations += 1
        return HostBuffer(self, size)

    def call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def host_memory(device: HostDevice) -> DeviceMemory:
    return DeviceMemory(device, SimpleNamespace(handle=0, address=0, synchronize=lambda: None))


class HostCudaEngine(OrtCudaEngine):
    """`OrtCudaEngine` whose sessions are of the CPU. `refuse_graphs` makes ONNX Runtime refuse as it does on a GPU."""

    def __init__(self, path: Path, name: str, memory: DeviceMemory, graphs: bool, refuse_graphs: bool = False) -> None:
        self.refuse_graphs, self.graph_ids = refuse_graphs, []
        super().__init__(path, name, memory, graphs)

    def _session_on_gpu(self, path: Path, graphs: bool) -> ort.InferenceSession:
        if graphs and self.refuse_graphs:
            return open_session(path.with_suffix(".refused"), self.name, session_options(1), ["CPUExecutionProvider"])
        return open_session(path, self.name, session_options(1), ["CPUExecutionProvider"])

    def _call(self, session: ort.InferenceSession, inputs: Tensors, outputs: Tensors, options: ort.RunOptions | None = None) -> None:
        if options is not None:
            self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
            assert all(isinstance(tensor, DeviceTensor) for tensor in {**inputs, **outputs}.values())
        super()._call(session, *({name: _array(tensor) for name, tensor in group.items()} for group in (inputs, outputs)))


class HostCuda:
    """Implements `Backend` like `OrtCuda`."""

    name = "ort-cuda"

    def __init__(self, device: HostDevice) -> None:
        self.device, self.memory, self.closed = device, host_memory(device), False

    def open_engine(self, path: Path, name: str) -> Engine:
        return HostCudaEngine(path, name, self.memory, name in CUDA_GRAPHS)

    def close(self) -> None:
        self.closed = True


class HostKernels:
    """Stands for a KernelLibrary and for the launch builder of `guided_sample`: a launch runs the NumPy truth."""

    def __init__(self) -> None:
        self.launched: list[Sampling] = []

    def sample(self, conditional: Buffer, unconditional: Buffer | None, *others: Any) -> Callable[[], None]:
        guidance = None if unconditional is None else _at(unconditional)
        *buffers, how = others
        seeds, codebook, tokens, codes = map(_at, buffers)

        def run() -> None:
            tokens[...], codes[...] = guided_sample.guided_sample(_at(conditional), guidance, seeds, codebook, how)
            self.launched.append(how)

        return run

    def launch(self, run: Callable[[], None], stream: Any) -> None:
        run()


def _array(tensor: Any) -> np.ndarray:
    """The memory of a tensor as an array."""
    if not isinstance(tensor, DeviceTensor):
        return tensor
    memory = (ctypes.c_uint8 * tensor.nbytes).from_address(tensor.address)
    return np.frombuffer(memory, tensor.dtype).reshape(tensor.shape)


def _at(buffer: Buffer) -> np.ndarray:
    dtype = np.dtype(buffer.dtype)
    return _array(DeviceTensor(buffer.address, buffer.shape, dtype, None))
