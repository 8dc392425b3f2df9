"""Arrays of every element type, on the host and on the GPU, for the kernels' tests.

NumPy has no bfloat16 and no FP8: such tensors are float32 arrays of values that the type has, and arrays of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from tolerances import QUANTIZED_STEPS, assert_close

from hart_edge.plugins.kernel import ITEM_BYTES, Buffer, Kernel, Launch
from hart_edge.plugins.quantize import e4m3_values
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.kernels import KernelLibrary

Array = npt.NDArray[Any]
STORED = {"bfloat16": np.uint16, "float8_e4m3": np.uint8}
ENTRY = {"float32": "kernel float32", "float16": "float16", "bfloat16": "bfloat16"}
"""Row of the table of tolerances for a kernel's output."""


def values(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0, scale: float = 1.0) -> Array:
    """Normal numbers as `represented` gives them."""
    return represented(scale * np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def represented(x: Array, dtype: str) -> Array:
    """x rounded to values that `dtype` has; float32 for bfloat16."""
    return from_bits(to_bits(x.astype(np.float32), dtype), dtype) if dtype == "bfloat16" else x.astype(dtype)


def native(x: Array, dtype: str) -> Array:
    """x in a NumPy type of its own, which for bfloat16 is that of ml_dtypes: truths then round between their steps, too."""
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def to_bits(x: Array, dtype: str) -> Array:
    """The array as it lies in memory; float32 is rounded to even for bfloat16."""
    if dtype != "bfloat16":
        return x.astype(STORED.get(dtype, dtype), copy=False)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bits(bits: Array, dtype: str) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else bits


def at(address: int, shape: tuple[int, ...], dtype: str = "float32") -> Buffer:
    """A buffer for launch builders that are only asked what they would launch."""
    return Buffer(address, shape, dtype)


def threads(launch: Launch) -> tuple[int, int, int]:
    """Threads along every axis of the grid."""
    x, y, z = (g * b for g, b in zip(launch.grid, launch.block, strict=True))
    return x, y, z


def assert_output(actual: Array, expected: Array, dtype: str, entry: str = "") -> None:
    """Within the table's entry for floats; quantised: within `QUANTIZED_STEPS` neighbouring values, and rarely off at all."""
    if dtype not in ("int8", "float8_e4m3"):
        return assert_close(actual, expected, entry or ENTRY[dtype])
    assert actual.shape == expected.shape
    order = _rank if dtype == "float8_e4m3" else np.int32
    steps = np.abs(np.asarray(order(actual), np.int32) - np.asarray(order(expected), np.int32))
    assert steps.max() <= QUANTIZED_STEPS
    assert (steps > 0).mean() <= 0.01


def _rank(codes: Array) -> Array:
    """Number of an E4M3 value in ascending order."""
    assert np.isfinite(e4m3_values(codes)).all()
    magnitude = (codes & 0x7F).astype(np.int32)
    return np.where(codes & 0x80, -magnitude, magnitude)


def sanitized(values: Sequence[Any], *chosen: int) -> list[Any]:
    """Parameters of a test; those at the chosen places belong to the selection for compute-sanitizer."""
    return [pytest.param(value, marks=pytest.mark.sanitizer if i in chosen else ()) for i, value in enumerate(values)]


class Gpu:
    """A device, the kernels and one stream. Every tensor lies in a buffer of its own.

    Attributes:
        launched: the kernels that `run` has launched so far.
    """

    def __init__(self, device: Device, library: KernelLibrary) -> None:
        self.device, self.library, self.stream = device, library, device.stream()
        self.launched: set[Kernel] = set()
        self._memory: dict[int, tuple[Any, int]] = {}

    def put(self, x: Array, dtype: str = "", misalign: bool = False) -> Buffer:
        """Upload; `misalign` starts one element past the allocation, so that only the path for single elements fits."""
        dtype = dtype or str(x.dtype)
        bits = np.ascontiguousarray(to_bits(x, dtype))
        offset = ITEM_BYTES[dtype] if misalign else 0
        memory = self.device.buffer(bits.nbytes + offset)
        memory.upload(bits, self.stream, offset)
        self._memory[memory.address + offset] = (memory, offset)
        return Buffer(memory.address + offset, x.shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Buffer:
        """Memory full of ones, which is not a number in the floating types: what is not written shows."""
        bits = np.full(shape, 0xFF, np.uint8) if ITEM_BYTES[dtype] == 1 else np.full((*shape, ITEM_BYTES[dtype]), 0xFF, np.uint8)
        memory = self.device.buffer(bits.nbytes)
        memory.upload(bits, self.stream)
        self._memory[memory.address] = (memory, 0)
        return Buffer(memory.address, shape, dtype)

    def run(self, *launches: Launch) -> None:
        for launch in launches:
            self.library.launch(launch, self.stream)
            self.launched.add(launch.kernel)
        self.stream.synchronize()

    def get(self, buffer: Buffer) -> Array:
        """Download; float32 for bfloat16, codes for FP8."""
        memory, offset = self._memory[buffer.address]
        bits = np.empty(buffer.shape, STORED.get(buffer.dtype, buffer.dtype))
        memory.download(bits, self.stream, offset)
        self.stream.synchronize()
        return from_bits(bits, buffer.dtype)

    def needs(self, dtype: str) -> bool:
        """Whether the device computes with the type: FP8 came with SM89."""
        return dtype != "float8_e4m3" or self.device.info.capability >= 89

    def free(self) -> None:
        for memory, _ in self._memory.values():
            memory.close()
        self._memory.clear()
