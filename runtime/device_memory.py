"""`Memory` on a GPU: blocks that are kept for the next tensor of their size, so that a second picture allocates nothing.

All work is on one stream, in whose order a block may be used again as soon as its tensor is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakMethod

import numpy as np
import numpy.typing as npt

from .cuda import Device, DeviceBuffer, Stream
from .engine import Array, DeviceTensor, Tensor
from .errors import GpuLostError, GpuMemoryError
from .memory import Shape


class DeviceMemory:
    """Implements `Memory`. Its stream is the one that the engines work on; tensors must not be used after `close`."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self.device, self.stream = device, stream
        self._idle: dict[int, list[DeviceBuffer]] = {}
        self._keepers: list[WeakMethod[Callable[[], None]]] = []

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> DeviceTensor:
        """GpuMemoryError if nothing is left even after the idle blocks were freed."""
        kind = np.dtype(dtype)
        lease = _Lease(self._block(max(1, math.prod(shape) * kind.itemsize)), self._idle)
        return DeviceTensor(lease.buffer.address, shape, kind, lease)

    def zeros(self, shape: Shape, dtype: npt.DTypeLike) -> DeviceTensor:
        tensor = self.empty(shape, dtype)
        _buffer(tensor).fill(0, self.stream)
        return tensor

    def upload(self, array: Array) -> DeviceTensor:
        tensor = self.empty(array.shape, array.dtype)
        self.write(tensor, array)
        return tensor

    def write(self, tensor: Tensor, source: Tensor) -> None:
        """Overwrite a tensor, or a part of one, with an array or another tensor of its shape and dtype."""
        if not isinstance(tensor, DeviceTensor) or (tensor.shape, tensor.dtype) != (source.shape, source.dtype):
            raise TypeError(f"{source.dtype} {list(source.shape)} does not fit {tensor}")
        buffer, driver = _buffer(tensor), self.device.driver
        if isinstance(source, DeviceTensor):
            self.device.call("copying on the GPU", driver.copy, tensor.address, source.address, source.nbytes, self.stream.handle)
        else:
            buffer.upload(np.ascontiguousarray(source), self.stream, tensor.address - buffer.address)

    def read(self, tensor: DeviceTensor, array: Array) -> None:
        """Fill a contiguous array of the tensor's shape and dtype, and wait for it."""
        buffer = _buffer(tensor)
        buffer.download(array, self.stream, tensor.address - buffer.address)
        self.stream.synchronize()

    def download(self, tensor: Tensor) -> Array:
        if not isinstance(tensor, DeviceTensor):
            return tensor
        array = np.empty(tensor.shape, tensor.dtype)
        self.read(tensor, array)
        return array

    def wait(self) -> None:
        self.stream.synchronize()

    def may_keep(self, drop: Callable[[], None]) -> bool:
        """Always: blocks that are idle are kept too."""
        self._keepers.append(WeakMethod(drop))
        return True

    def trim(self) -> bool:
        """Free the idle blocks and what is kept for later; says whether there was any."""
        for keeper in self._keepers:
            if drop := keeper():
                drop()
        blocks = [block for idle in self._idle.values() for block in idle]
        self._idle.clear()
        if blocks:
            with suppress(GpuLostError):  # nothing of a lost GPU is in use
                self.stream.synchronize()
        for block in blocks:
            block.close()
        return bool(blocks)

    def _block(self, size: int) -> DeviceBuffer:
        idle = self._idle.get(size)
        if idle:
            return idle.pop()
        try:
            return self.device.buffer(size)
        except GpuMemoryError:
            if not self.trim():
                raise
            return self.device.buffer(size)


class _Lease:
    """A block in use; it becomes idle with the last tensor on it."""

    def __init__(self, buffer: DeviceBuffer, idle: dict[int, list[DeviceBuffer]]) -> None:
        self.buffer, self._idle = buffer, idle

    def __del__(self) -> None:
        self._idle.setdefault(self.buffer.size, []).append(self.buffer)


def _buffer(tensor: DeviceTensor) -> DeviceBuffer:
    if not isinstance(tensor.base, _Lease):
        raise TypeError(f"{tensor} is not of this memory")
    return tensor.base.buffer
