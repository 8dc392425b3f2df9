"""Where the tensors of a generation lie: in the host's memory, as arrays, or on a GPU (`device_memory.py`).

The scale loop and its parts allocate from a `Memory` and are the same code for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DeviceTensor:
    """Contiguous memory of a GPU. NumPy cannot read it: `Memory.download` gives an array.

    Attributes:
        address: of the first element.
        shape, dtype: as of an array.
        base: whatever frees the memory when the last tensor on it is gone.
    """

    address: int
    shape: Shape
    dtype: np.dtype[Any]
    base: object = field(repr=False)

    __array_ufunc__ = None  # array + tensor is a TypeError; NumPy would otherwise make an array of objects

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError(f"{self} lies on the GPU; download it first.")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: int | slice) -> DeviceTensor:
        """One entry or a run of entries along the first axis, the same memory; IndexError beyond the end."""
        start, stop, step = slice(index, index + 1).indices(self.shape[0]) if isinstance(index, int) else index.indices(self.shape[0])
        if step != 1 or stop <= start:
            raise IndexError(f"{index} of the first axis of {list(self.shape)} is not a run of entries")
        inner = self.shape[1:]
        address = self.address + start * math.prod(inner) * self.dtype.itemsize
        return DeviceTensor(address, inner if isinstance(index, int) else (stop - start, *inner), self.dtype, self.base)


Tensor = Array | DeviceTensor


class Memory(Protocol):
    """Allocates tensors, which are freed with the last reference to them, and moves their contents."""

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> Tensor:
        """Uninitialised."""

    def zeros(self, shape: Shape, dtype: npt.DTypeLike) -> Tensor: ...

    def upload(self, array: Array) -> Tensor:
        """A tensor of the array's contents; the array itself in the host's memory."""

    def write(self, tensor: Tensor, array: Array) -> None:
        """Overwrite a tensor, or a part of one that indexing gave, with an array of its shape and dtype."""

    def download(self, tensor: Tensor) -> Array:
        """An array of the tensor's contents; the tensor itself if it is an array."""

    def wait(self) -> None:
        """Until all work begun on the tensors is done."""

    def may_keep(self, drop: Callable[[], None]) -> bool:
        """Whether tensors may be kept for later that nobody uses. If so `drop`, a method of who keeps them, is called when the
        memory is needed; if not, what is free is better given back to the system, which other programs share."""


class HostMemory:
    """Tensors are arrays."""

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> Tensor:
        return np.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: npt.DTypeLike) -> Tensor:
        return np.zeros(shape, dtype)

    def upload(self, array: Array) -> Tensor:
        return array

    def write(self, tensor: Tensor, array: Array) -> None:
        _array(tensor)[...] = array

    def download(self, tensor: Tensor) -> Array:
        return _array(tensor)

    def wait(self) -> None:
        return  # nothing of the host's is done later

    def may_keep(self, drop: Callable[[], None]) -> bool:
        return False


HOST = HostMemory()


def _array(tensor: Tensor) -> Array:
    if isinstance(tensor, DeviceTensor):
        raise TypeError(f"{tensor} lies on the GPU; the memory it came from must read and write it.")
    return tensor
