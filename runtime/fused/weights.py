"""A bundle's weights on the device: each tensor goes up once, as it is stored or as a component wants it laid out."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from hart_edge.plugins.kernel import ITEM_BYTES, Buffer

from ..bundle import WEIGHTS, Bundle
from ..cuda import Device, DeviceBuffer, Stream
from ..engine import Array
from ..errors import BundleError, InputError
from ..spec import REEXPORT

BLOCK = 64 << 20
"""Bytes of one allocation; a larger tensor gets one of its own."""
ALIGNMENT = 256


class Weights:
    """Args: an open bundle, the device, the stream that copies. `used` holds the names of stored tensors that were taken."""

    def __init__(self, bundle: Bundle, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._path = bundle.file(WEIGHTS)
        self._file = _open(self._path)
        self.names = frozenset(self._file.keys())
        self.used: set[str] = set()
        self._buffers: dict[str, Buffer] = {}
        self._blocks: list[DeviceBuffer] = []
        self._end = 0

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Buffer:
        """The tensor on the device, as stored; copied there when it is first asked for."""
        if name not in self._buffers:
            self.put(name, self.host(name))
        return self._buffers[name]

    def maybe(self, name: str) -> Buffer | None:
        """The tensor on the device, or None for one that the model does not have."""
        return self[name] if name in self.names else None

    def host(self, name: str) -> Array:
        """The stored tensor in host memory, for components that lay it out anew; it does not go to the device."""
        if name not in self.names:
            raise BundleError(f"{self._path} has no tensor {name}.", REEXPORT)
        self.used.add(name)
        array: Array = self._file.get_tensor(name)
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a stored tensor; reads its header only, and does not count as use."""
        if name not in self.names:
            raise BundleError(f"{self._path} has no tensor {name}.", REEXPORT)
        return tuple(self._file.get_slice(name).get_shape())

    def put(self, name: str, array: Array) -> Buffer:
        """Copy an array to the device under a name that is not taken."""
        if name in self._buffers:
            raise InputError(f"the weight {name} is on the device already; expected a name of its own.")
        if array.dtype.name not in ITEM_BYTES:
            raise BundleError(f"the weight {name} is {array.dtype}; expected one of {sorted(ITEM_BYTES)}.", REEXPORT)
        array = np.ascontiguousarray(array)
        block, offset = self._place(array.nbytes)
        block.upload(array, self._stream, offset)
        self._buffers[name] = Buffer(block.address + offset, array.shape, array.dtype.name)
        return self._buffers[name]

    def copy(self, source: str, name: str, transform: Any = None) -> Buffer:
        """The stored tensor `source` on the device as `name`, after `transform` (array → array)."""
        if name in self._buffers:
            return self._buffers[name]
        array = self.host(source)
        return self.put(name, array if transform is None else transform(array))

    @property
    def bytes(self) -> int:
        """Of device memory taken."""
        return sum(block.size for block in self._blocks)

    def _place(self, size: int) -> tuple[DeviceBuffer, int]:
        """A block with room for `size` bytes, and where in it."""
        if not self._blocks or self._end + size > self._blocks[-1].size:
            self._blocks.append(self._device.buffer(max(size, BLOCK)))
            self._end = 0
        offset = self._end
        self._end = -(-(offset + size) // ALIGNMENT) * ALIGNMENT
        return self._blocks[-1], offset

    def close(self) -> None:
        """Free the device memory. Idempotent."""
        self._buffers.clear()
        while self._blocks:
            self._blocks.pop().close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open(path: Any) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: {error}.", REEXPORT) from error
