"""A bundle's weights as components take them: each tensor once, as it is stored or as a component wants it laid out.

Components are loaded twice by the same code: from a `WeightsPlan`, which reads the file's header only and counts, and from
the `DeviceWeights` whose one allocation is as large as the plan says. The file is mapped, so a tensor is read when it is copied.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
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
from .upload import Content, Uploader, whole
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

    @property
    def placed(self) -> frozenset[str]:
        """Names that are on the device."""
        return frozenset(self._buffers)

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
        return self._put(name, array.shape, array.dtype, [array])

    def put_joined(self, name: str, *parts: str) -> Buffer:
        """Stored tensors side by side along their last axis, as one product's weight or bias."""
        arrays = [self.host(part) for part in parts]
        shape = (*arrays[0].shape[:-1], sum(array.shape[-1] for array in arrays))
        return self._put(name, shape, arrays[0].dtype, arrays)

    def put_made(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], Array]) -> Buffer:
        """What `make` gives, to be computed while other things are copied, and not at all where sizes are planned."""
        return self._put(name, shape, dtype, make)

    def copy(self, source: str, name: str, transform: Callable[[Array], Array] | None = None) -> Buffer:
        """The stored tensor `source` on the device as `name`, after `transform`."""
        if name in self._buffers:
            return self._buffers[name]
        array = self.host(source)
        return self.put(name, array if transform is None else transform(array))

    def _put(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], content: Content) -> Buffer:
        if name in self._buffers:
            raise InputError(f"the weight {name} is on the device already; expected a name of its own.")
        if dtype.name not in ITEM_BYTES:
            raise BundleError(f"the weight {name} is {dtype}; expected one of {sorted(ITEM_BYTES)}.", REEXPORT)
        self._buffers[name] = Buffer(self._store(content, math.prod(shape) * dtype.itemsize), shape, dtype.name)
        return self._buffers[name]

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Of device memory taken."""

    @abstractmethod
    def _read(self, name: str) -> Array:
        """A stored tensor."""

    @abstractmethod
    def _store(self, content: Content, size: int) -> int:
        """Address of `size` bytes on the device that hold the content."""

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise BundleError(f"{self._path} has no tensor {name}.", REEXPORT)


class DeviceWeights(Weights):
    """Weights on a device. A context manager; closing it frees them.

    Args:
        bundle: an open one; device, stream: where to, and what copies.
        size: bytes of the first allocation, all of them where they were planned.
        what: named in errors.
        uploader: copies; nothing is there before it has ended, and `settle` must be called then. Without one copies are at once.

    Raises GpuMemoryError, from the constructor where they were planned.
    """

    def __init__(
        self, bundle: Bundle, device: Device, stream: Stream, size: int = BLOCK, what: str = "weights", uploader: Uploader | None = None
    ) -> None:
        super().__init__(bundle)
        self._device, self._stream, self._what, self._uploader = device, stream, what, uploader
        self._mapped = _map(self._path)
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

    def settle(self) -> None:
        """From now on copies are made at once."""
        self._uploader = None

    def _read(self, name: str) -> Array:
        if name not in self._mapped:
            raise BundleError(f"the weight {name} in {self._path} is of a type other than {', '.join(DTYPES)}.", REEXPORT)
        return self._mapped[name]

    def _store(self, content: Content, size: int) -> int:
        block, offset = self._place(size)
        if self._uploader is not None:
            self._uploader.put(content, block.address + offset)
        else:
            block.upload(whole(content), self._stream, offset)
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

    def _store(self, content: Content, size: int) -> int:
        offset = self._end
        self._end = aligned(offset + size)
        return offset


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _map(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file that `safe_open` took, by name: [8 bytes: length][header][tensors], read on access."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    header.pop("__metadata__", None)
    return {name: _view(data[start:], facts) for name, facts in header.items() if facts["dtype"] in DTYPES}


def _view(data: Array, facts: dict[str, Any]) -> Array:
    begin, end = facts["data_offsets"]
    view: Array = data[begin:end].view(DTYPES[facts["dtype"]]).reshape(facts["shape"])
    return view


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: {error}.", REEXPORT) from error
