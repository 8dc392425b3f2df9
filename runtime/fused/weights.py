"""A bundle's weights as components take them: each tensor once, as it is stored or as a component wants it laid out.

Components are loaded twice by the same code: from a `WeightsPlan`, which reads the file's header only and counts, and from
the `DeviceWeights` whose one allocation is as large as the plan says. The file is mapped, so a tensor is read when it is copied.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from hart_edge.plugins import transpose
from hart_edge.plugins.kernel import FP8, ITEM_BYTES, Buffer
from hart_edge.plugins.quantize import e4m3_values

from ..bundle import WEIGHTS, Bundle
from ..cuda import DeviceBuffer
from ..engine import Array
from ..errors import BundleError, EngineError, InputError
from ..spec import REEXPORT
from .context import FusedContext
from .upload import Content, Uploader, whole
from .workspace import aligned, allocate

BLOCK = 64 << 20
"""Bytes of an allocation where nothing was planned."""
DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}
"""NumPy's types by their names in a weights file."""
STORED_FP8 = "F8_E4M3"
"""Another one: quantised, with a float32 scale beside it. NumPy has no such type: on the host these are codes, uint8."""
HOST_DTYPES = DTYPES | {STORED_FP8: np.uint8}
E4M3 = e4m3_values(np.arange(256, dtype=np.uint8))
"""Values of all codes."""
OTHER_BACKEND = "Use another backend for this bundle (--backend ort-cuda or cpu), or its fp16 version."


class Weights(ABC):
    """Args: an open bundle. `used` holds the names of stored tensors that were taken, `fp8` those that stay FP8 on the device."""

    def __init__(self, bundle: Bundle) -> None:
        self._path = bundle.file(WEIGHTS)
        self._file = _open(self._path)
        self.names = frozenset(self._file.keys())
        self.used: set[str] = set()
        self.fp8: set[str] = set()
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
        """The stored tensor in host memory, for components that lay it out anew; it does not go to the device.

        FP8 is dequantised to float16. EngineError for a type that the engine does not compute with.
        """
        kind = self.kind(name)
        if kind not in (*DTYPES, STORED_FP8):
            known = ", ".join((*DTYPES, STORED_FP8))
            raise EngineError(f"{self._path} holds {name} as {kind}; the engine `cuda` takes {known}.", OTHER_BACKEND)
        self.used.add(name)
        return self._dequantized(name) if kind == STORED_FP8 else self._read(name)

    def scalar(self, name: str) -> float:
        """A positive, finite number that is stored as one float32; a plan reads it, too."""
        self._check(name)
        self.used.add(name)
        value = self._file.get_tensor(name)
        if value.size != 1 or value.dtype != np.float32 or not 0 < value.item() < math.inf:
            what = f"{value.dtype} {value.item()}" if value.size == 1 else f"{value.dtype} {list(value.shape)}"
            raise BundleError(f"{self._path}: {name} is {what}; expected one positive float32.", REEXPORT)
        return float(value.item())

    def kind(self, name: str) -> str:
        """Of a stored tensor, its type as the file calls it; does not count as use."""
        self._check(name)
        return str(self._file.get_slice(name).get_dtype())

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

    def put_turned(self, name: str, *parts: str) -> Buffer:
        """Stored FP8 tensors [in, out] of one width `in`, as one [out, in]: each transposed, one behind the other."""
        self.used.update(parts)
        self.fp8.update(parts)
        (inner,) = {self.shape(part)[0] for part in parts}
        outer = sum(self.shape(part)[1] for part in parts)
        self._buffers[name] = Buffer(self._store_turned(parts), (outer, inner), FP8)
        return self._buffers[name]

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
    def _dequantized(self, name: str) -> Array:
        """A stored FP8 tensor in float16."""

    @abstractmethod
    def _store(self, content: Content, size: int) -> int:
        """Address of `size` bytes on the device that hold the content."""

    @abstractmethod
    def _store_turned(self, names: tuple[str, ...]) -> int:
        """Address of stored FP8 tensors on the device, transposed, one behind the other."""

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise BundleError(f"{self._path} has no tensor {name}.", REEXPORT)


class DeviceWeights(Weights):
    """Weights on a device. A context manager; closing it frees them.

    Args:
        bundle: an open one; context: where to.
        size: bytes of the first allocation, all of them where they were planned.
        what: named in errors.
        uploader: copies, all but what is transposed; nothing is there before it has ended, and `settle` must be called then.
            Without one copies are at once.

    Raises GpuMemoryError, from the constructor where they were planned.
    """

    def __init__(
        self, bundle: Bundle, context: FusedContext, size: int = BLOCK, what: str = "weights", uploader: Uploader | None = None
    ) -> None:
        super().__init__(bundle)
        self._context, self._what, self._uploader = context, what, uploader
        self._mapped = _map(self._path)
        self._blocks: list[DeviceBuffer] = [allocate(context.device, size, what)]
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
        return self._mapped[name]

    def _dequantized(self, name: str) -> Array:
        return (E4M3[self._mapped[name]] * np.float32(self.scalar(f"{name}.scale"))).astype(np.float16)

    def _store(self, content: Content, size: int) -> int:
        block, offset = self._place(size)
        if self._uploader is not None:
            self._uploader.put(content, block.address + offset)
        else:
            block.upload(whole(content), self._context.stream, offset)
        return block.address + offset

    def _store_turned(self, names: tuple[str, ...]) -> int:
        """The device transposes, out of a buffer that is freed again: 680 MB of one-byte elements take the host seconds.

        Copies and transposes take turns on the context's stream, past the uploader, whose copies go to other addresses.
        """
        sizes = [math.prod(self.shape(name)) for name in names]
        block, offset = self._place(sum(sizes))
        start = end = block.address + offset
        with closing(allocate(self._context.device, max(sizes), self._what)) as stage:
            for name, size in zip(names, sizes, strict=True):
                inner, outer = self.shape(name)
                stage.upload(self._mapped[name], self._context.stream)
                self._context.launch(transpose.launch(Buffer(stage.address, (1, inner, outer), FP8), Buffer(end, (1, outer, inner), FP8)))
                end += size
            self._context.stream.synchronize()
        return start

    def _place(self, size: int) -> tuple[DeviceBuffer, int]:
        """A block with room for `size` bytes, and where in it."""
        if not self._blocks or self._end + size > self._blocks[-1].size:
            self._blocks.append(allocate(self._context.device, max(size, BLOCK), self._what))
            self._end = 0
        offset = self._end
        self._end = aligned(offset + size)
        return self._blocks[-1], offset

    def __enter__(self) -> DeviceWeights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class WeightsPlan(Weights):
    """Counts what components take; reads no tensor but scales, and needs no device.

    Addresses are offsets, arrays are zeros without memory.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._end = 0

    @property
    def bytes(self) -> int:
        return self._end

    def _read(self, name: str) -> Array:
        return _zeros(self.shape(name), np.dtype(DTYPES[self.kind(name)]))

    def _dequantized(self, name: str) -> Array:
        self.scalar(f"{name}.scale")
        return _zeros(self.shape(name), np.dtype(np.float16))

    def _store(self, content: Content, size: int) -> int:
        return self._take(size)

    def _store_turned(self, names: tuple[str, ...]) -> int:
        return self._take(sum(math.prod(self.shape(name)) for name in names))

    def _take(self, size: int) -> int:
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
    return {name: _view(data[start:], facts) for name, facts in header.items() if facts["dtype"] in HOST_DTYPES}


def _view(data: Array, facts: dict[str, Any]) -> Array:
    begin, end = facts["data_offsets"]
    view: Array = data[begin:end].view(HOST_DTYPES[facts["dtype"]]).reshape(facts["shape"])
    return view


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: {error}.", REEXPORT) from error
