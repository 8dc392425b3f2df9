"""A bundle's weights as components take them: each tensor once, as it is stored or as a component wants it laid out.

Components are loaded twice by the same code: from a `WeightsPlan`, which reads the file's header only and counts, and from
the `DeviceWeights` whose one allocation is as large as the plan says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
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
from .workspace import aligned, allocate

BLOCK = 64 << 20
"""Bytes of an allocation where nothing was planned."""
DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}
"""NumPy's types by their names in a weights file."""


class Weights(ABC):
    """Args: an open bundle. `used` holds the names of stored tensors that were taken."""

    def __init__(self, bundle: Bundle) -> None:
        self._path = bundle.file(WEIGHTS)
        self._file = _open(self._path)
        self.names = frozenset(self._file.keys())
        self.used: set[str] = set()
        self._buffers: dict[str, Buffer] = {}

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
        self._check(name)
        self.used.add(name)
        return self._read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a stored tensor; reads its header only, and does not count as use."""
        self._check(name)
        return tuple(self._file.get_slice(name).get_shape())

    def put(self, name: str, array: Array) -> Buffer:
        """Copy an array to the device under a name that is not taken."""
        if name in self._buffers:
            raise InputError(f"the weight {name} is on the device already; expected a name of its own.")
        if array.dtype.name not in ITEM_BYTES:
            raise BundleError(f"the weight {name} is {array.dtype}; expected one of {sorted(ITEM_BYTES)}.", REEXPORT)
        self._buffers[name] = Buffer(self._store(array), array.shape, array.dtype.name)
        return self._buffers[name]

    def put_joined(self, name: str, *parts: str) -> Buffer:
        """Stored tensors side by side along their last axis, as one product's weight or bias."""
        return self.put(name, self._join([self.host(part) for part in parts]))

    def copy(self, source: str, name: str, transform: Callable[[Array], Array] | None = None) -> Buffer:
        """The stored tensor `source` on the device as `name`, after `transform`."""
        if name in self._buffers:
            return self._buffers[name]
        array = self.host(source)
        return self.put(name, array if transform is None else transform(array))

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Of device memory taken."""

    @abstractmethod
    def _read(self, name: str) -> Array:
        """A stored tensor."""

    @abstractmethod
    def _join(self, arrays: list[Array]) -> Array:
        """Arrays side by side along their last axis."""

    @abstractmethod
    def _store(self, array: Array) -> int:
        """Address of a copy on the device."""

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise BundleError(f"{self._path} has no tensor {name}.", REEXPORT)


class DeviceWeights(Weights):
    """Weights on a device. A context manager; closing it frees them.

    Args:
        bundle: an open one; device, stream: where to, and what copies.
        size: bytes of the first allocation, all of them where they were planned.
        what: named in errors.

    Raises GpuMemoryError, from the constructor where they were planned.
    """

    def __init__(self, bundle: Bundle, device: Device, stream: Stream, size: int = BLOCK, what: str = "weights") -> None:
        super().__init__(bundle)
        self._device, self._stream, self._what = device, stream, what
        self._blocks: list[DeviceBuffer] = [allocate(device, size, what)]
        self._end = 0

    @property
    def bytes(self) -> int:
        return sum(block.size for block in self._blocks)

    def close(self) -> None:
        """Free the device memory. Idempotent."""
        self._buffers.clear()
        while self._blocks:
            self._blocks.pop().close()

    def _read(self, name: str) -> Array:
        array: Array = self._file.get_tensor(name)
        return array

    def _join(self, arrays: list[Array]) -> Array:
        return np.concatenate(arrays, axis=-1)

    def _store(self, array: Array) -> int:
        block, offset = self._place(array.nbytes)
        block.upload(np.ascontiguousarray(array), self._stream, offset)
        return block.address + offset

    def _place(self, size: int) -> tuple[DeviceBuffer, int]:
        """A block with room for `size` bytes, and where in it."""
        if not self._blocks or self._end + size > self._blocks[-1].size:
            self._blocks.append(allocate(self._device, max(size, BLOCK), self._what))
            self._end = 0
        offset = self._end
        self._end = aligned(offset + size)
        return self._blocks[-1], offset

    def __enter__(self) -> DeviceWeights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class WeightsPlan(Weights):
    """Counts what components take; reads no tensor and needs no device. Addresses are offsets, arrays are zeros without memory."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._end = 0

    @property
    def bytes(self) -> int:
        return self._end

    def _read(self, name: str) -> Array:
        kind = self._file.get_slice(name).get_dtype()
        if kind not in DTYPES:
            raise BundleError(f"the weight {name} is {kind}; expected one of {sorted(DTYPES)}.", REEXPORT)
        return _zeros(self.shape(name), np.dtype(DTYPES[kind]))

    def _join(self, arrays: list[Array]) -> Array:
        first = arrays[0]
        return _zeros((*first.shape[:-1], sum(array.shape[-1] for array in arrays)), first.dtype)

    def _store(self, array: Array) -> int:
        offset = self._end
        self._end = aligned(offset + array.nbytes)
        return offset


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _open(path: Any) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: {error}.", REEXPORT) from error
