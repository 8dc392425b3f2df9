"""A GPU made of NumPy: enough of the fused engine's context to run whole components on the CPU, kernel by kernel.

Memory is one array of bytes and an address an offset into it, so buffers that overlap by mistake spoil each other here as
they would on a card. Kernels are told by their source and computed with their truths' formulas; products and convolutions by
what they were planned for. Slow, and for small sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from emulated_cudnn import Cudnn
from emulated_products import Blas

from hart_edge.plugins import (
    Launch,
    add_silu,
    diffusion_update,
    gate_residual,
    join_phases,
    layer_norm_modulate,
    noise,
    rms_norm,
    transpose,
)
from hart_edge.plugins.quantize import Array, e4m3_codes
from hart_edge.runtime.cuda_resources import MemoryUse
from hart_edge.runtime.errors import GpuMemoryError
from hart_edge.runtime.fused.context import FusedContext

START = 4096
"""First address that is given away; 0 stays the null pointer."""
TYPES = {"float": np.float32, "__half": np.float16, "__nv_fp8_e4m3": np.uint8}
"""NumPy's types by the kernels' names; FP8 is kept as its codes."""


class Memory:
    """One piece of memory; what is taken or freed is full of ones: not a number in the floating types.

    Args:
        size: bytes that addresses reach; what was freed is not given away again.

    Attributes:
        limit: bytes that may be in use at a time: the size of the emulated card.
    """

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, np.uint8)  # no memory of the host before it is taken
        self.limit, self.use = size, MemoryUse()
        self._end = START

    def take(self, size: int) -> int:
        if self.use.bytes + size > self.limit:
            raise GpuMemoryError(f"allocating {size} bytes failed: {self.limit - self.use.bytes} of {self.limit} are free.")
        start, self._end = self._end, -(-(self._end + size) // 256) * 256
        assert self._end <= self.bytes.size, "the emulated GPU is too small"
        self.bytes[start : start + size] = 0xFF
        self.use.take(size)
        return start

    def free(self, start: int, size: int) -> None:
        self.bytes[start : start + size] = 0xFF
        self.use.give(size)

    def at(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """A view of the memory."""
        assert address >= START, "null pointer"
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self.bytes[address : address + size].view(dtype).reshape(shape)

    def strided(self, address: int, batch: tuple[int, int], rows: tuple[int, int], columns: int, dtype: Any) -> Array:
        """[batch, rows, columns]; batch and rows as (number, elements from one to the next)."""
        count = (batch[0] - 1) * batch[1] + (rows[0] - 1) * rows[1] + columns
        item = np.dtype(dtype).itemsize
        flat = self.at(address, (count,), dtype)
        return np.lib.stride_tricks.as_strided(flat, (batch[0], rows[0], columns), (batch[1] * item, rows[1] * item, item))


class Block:
    """Stands for a `DeviceBuffer`."""

    def __init__(self, memory: Memory, size: int) -> None:
        self._memory, self.address, self.size, self._open = memory, memory.take(size), size, True

    def upload(self, array: Array, stream: Any, offset: int = 0) -> None:
        self._memory.at(self.address + offset, array.shape, array.dtype)[...] = array

    def fill(self, value: int, stream: Any) -> None:
        self._memory.at(self.address, (self.size,), np.uint8)[...] = value

    def close(self) -> None:
        if self._open:
            self._memory.free(self.address, self.size)
        self._open = False

    def __enter__(self) -> Block:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Driver:
    """Copies."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def upload(self, target: int, array: Array, stream: Any) -> None:
        self._memory.at(target, array.shape, array.dtype)[...] = array

    def download(self, array: Array, source: int, stream: Any) -> None:
        array[...] = self._memory.at(source, array.shape, array.dtype)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        self._memory.at(target, (size,), np.uint8)[...] = self._memory.at(source, (size,), np.uint8).copy()


class Device:
    """Stands for a `Device`."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self.driver, self.use = memory, Driver(memory), memory.use
        self.info = SimpleNamespace(name="emulated GPU", capability=90)

    def buffer(self, size: int) -> Block:
        return Block(self._memory, size)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> SimpleNamespace:
        return SimpleNamespace(array=np.empty(shape, dtype), close=lambda: None)

    def stream(self) -> Stream:
        return Stream()

    def synchronize(self) -> None: ...

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def event(self) -> SimpleNamespace:
        return SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)

    def call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Captured:
    """Stands for a `Graph`."""

    def __init__(self, record: Callable[[], None]) -> None:
        self._record = record

    def launch(self, stream: Any) -> None:
        self._record()

    def close(self) -> None: ...


class Stream:
    handle = None
    address = 0

    def synchronize(self) -> None: ...

    def close(self) -> None: ...

    def capture(self, record: Callable[[], None]) -> Captured:
        return Captured(record)


def emitted(y: Array, types: list[Any], inverse: float) -> Array:
    """A kernel's rounded result as its output type, the second of its types: quantised where that is FP8."""
    return e4m3_codes(y.astype(np.float32) * np.float32(inverse)) if types[1] is np.uint8 else y


class Library:
    """Stands for the `KernelLibrary`: finds the kernel's formula by its source and name."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def launch(self, launch: Launch, stream: Any) -> None:
        name = launch.kernel.expression.split("<")[0].removeprefix("hart::")
        types = [TYPES[part] for part in launch.kernel.expression.split("<")[-1].strip(">").split(", ") if part in TYPES]
        arguments = [a.value if hasattr(a, "value") else a.item() for a in launch.arguments]
        getattr(self, f"_{name}")(launch, types, *arguments)

    def _cast(self, launch: Launch, types: list[Any], x: int, y: int, size: int, inverse: float) -> None:
        self._memory.at(y, (size,), types[1])[...] = emitted(self._memory.at(x, (size,), types[0]), types, inverse)

    def _add_bias(self, launch: Launch, types: list[Any], x: int, bias: int, residual: int, y: int, rows: int, width: int) -> None:
        at, dtype = self._memory.at, types[0]
        total = at(x, (rows, width), dtype).astype(np.float32) + at(bias, (width,), dtype)
        at(y, (rows, width), dtype)[...] = total + at(residual, (rows, width), dtype) if residual else total

    def _add_silu(self, launch: Launch, types: list[Any], x: int, row: int, y: int, width: int, inverse: float) -> None:
        at, dtype, rows = self._memory.at, types[0], launch.grid[0]
        made = add_silu.add_silu(at(x, (rows, width), dtype), at(row, (width,), dtype) if row else None)
        at(y, (rows, width), types[1])[...] = emitted(made, types, inverse)

    def _softmax_rows(self, launch: Launch, types: list[Any], x: int, y: int, width: int) -> None:
        values = torch.from_numpy(self._memory.at(x, (launch.grid[0], width), types[0]).astype(np.float32))
        self._memory.at(y, (launch.grid[0], width), types[0])[...] = torch.softmax(values, -1).numpy()

    def _transpose(self, launch: Launch, types: list[Any], x: int, y: int, rows: int, columns: int) -> None:
        batch, dtype = launch.grid[2], types[0]
        self._memory.at(y, (batch, columns, rows), dtype)[...] = transpose.transpose(self._memory.at(x, (batch, rows, columns), dtype))

    def _take_rows(self, launch: Launch, types: list[Any], table: int, index: int, y: int, count: int, width: int) -> None:
        numbers = np.resize(self._memory.at(index, (count,), np.int64), launch.grid[0])
        entries = self._memory.at(table, (numbers.max() + 1, width), types[0])
        self._memory.at(y, (launch.grid[0], width), types[0])[...] = entries[numbers]

    def _join_phases(self, launch: Launch, types: list[Any], z: int, y: int, height: int, width: int, channels: int) -> None:
        batch = launch.grid[1] // (2 * height)
        source = self._memory.at(z, (batch, height + 1, width + 1, 4 * channels), types[0])
        self._memory.at(y, (batch, 2 * height, 2 * width, channels), types[0])[...] = join_phases.join_phases(source)

    def _group_norm_statistics(self, launch: Launch, types: list[Any], *arguments: int) -> None: ...

    def _group_norm_fold(
        self,
        launch: Launch,
        types: list[Any],
        x: int,
        partial: int,
        weight: int,
        bias: int,
        affine: int,
        pixels: int,
        channels: int,
        *rest: Any,
    ) -> None:
        at, dtype, batch = self._memory.at, types[0], launch.grid[0]
        grouped = at(x, (batch, pixels, 32, channels // 32), dtype).astype(np.float64)
        mean, variance = (np.repeat(f(axis=(1, 3)), channels // 32, axis=1) for f in (grouped.mean, grouped.var))
        gain = at(weight, (channels,), dtype) / np.sqrt(variance + rest[-1])
        at(affine, (batch, 2, channels), np.float32)[...] = np.stack([gain, at(bias, (channels,), dtype) - mean * gain], axis=1)

    def _group_norm_apply(
        self, launch: Launch, types: list[Any], x: int, affine: int, y: int, pixels: int, channels: int, chunk: int
    ) -> None:
        at, dtype, batch = self._memory.at, types[0], launch.grid[1]
        gain, offset = np.split(at(affine, (batch, 2, channels), np.float32), 2, axis=1)
        value = at(x, (batch, pixels, channels), dtype) * gain + offset
        at(y, (batch, pixels, channels), dtype)[...] = value / (1 + np.exp(-value)) if "true" in launch.kernel.expression else value

    def _to_uint8(self, launch: Launch, types: list[Any], x: int, out: int, pixels: int) -> None:
        assert "true" in launch.kernel.expression  # channels last
        values = np.clip(self._memory.at(x, (launch.grid[1], pixels, 3), types[0]).astype(np.float32), -1, 1)
        self._memory.at(out, (launch.grid[1], pixels, 3), np.uint8)[...] = (values * 0.5 + 0.5) * 255 + 0.5

    def _layer_norm_modulate(
        self,
        launch: Launch,
        types: list[Any],
        x: int,
        weight: int,
        bias: int,
        scale: int,
        shift: int,
        y: int,
        width: int,
        stride: int,
        eps: float,
        inverse: float,
    ) -> None:
        at, dtype, rows = self._memory.at, types[0], launch.grid[0]
        affine = (at(weight, (width,), dtype), at(bias, (width,), dtype)) if weight else None
        parts = [self._memory.strided(p, (1, 0), (rows, stride), width, dtype)[0] for p in (shift, scale)]
        truth = layer_norm_modulate.layer_norm_modulate(at(x, (rows, width), dtype), np.concatenate(parts, axis=1), 0, 1, eps, affine)
        at(y, (rows, width), types[1])[...] = emitted(truth, types, inverse)

    def _gate_residual(self, launch: Launch, types: list[Any], h: int, gate: int, y: int, out: int, width: int, stride: int) -> None:
        at, dtype, rows = self._memory.at, types[0], launch.grid[0]
        gates = self._memory.strided(gate, (1, 0), (rows, stride), width, dtype)[0]
        at(out, (rows, width), dtype)[...] = gate_residual.gate_residual(at(h, (rows, width), dtype), gates, 0, at(y, (rows, width), dtype))

    def _rms_norm(
        self, launch: Launch, types: list[Any], x: int, residual: int, total: int, weight: int, scale: int, shift: int, y: int, *rest: Any
    ) -> None:
        at, dtype, (each, groups, _), (width, eps, _) = self._memory.at, types[0], launch.grid, rest
        rows = each * groups
        added = at(residual, (rows, width), dtype) if residual else None
        modulation = (at(scale, (groups, width), dtype), at(shift, (groups, width), dtype)) if scale else None
        normed, s = rms_norm.rms_norm(at(x, (rows, width), dtype), at(weight, (width,), dtype), eps, added, modulation)
        if residual:
            at(total, (rows, width), dtype)[...] = s
        at(y, (rows, width), types[1])[...] = emitted(normed, types, rest[2])

    def _rms_norm_pair(self, launch: Launch, types: list[Any], x: int, weight: int, scale: int, shift: int, y: int, *rest: Any) -> None:
        at, dtype, (width, each, eps, inverse), groups = self._memory.at, types[0], rest, launch.grid[1]
        shape = (each * groups, width)
        modulation = (at(scale, (groups, width), dtype), at(shift, (groups, width), dtype)) if scale else None
        normed, _ = rms_norm.rms_norm(at(x, shape, dtype), at(weight, (width,), dtype), eps, modulation=modulation)
        at(y, shape, types[1])[...] = emitted(normed, types, inverse)

    def _noise(self, launch: Launch, types: list[Any], seeds: int, out: int, size: int, index: int, purpose: int) -> None:
        drawn = noise.noise(self._memory.at(seeds, (launch.grid[1],), np.uint64), size, index, purpose, "true" in launch.kernel.expression)
        self._memory.at(out, drawn.shape, np.float32)[...] = drawn

    def _diffusion_update(
        self,
        launch: Launch,
        types: list[Any],
        x: int,
        raw: int,
        read: int,
        seeds: int,
        next_x: int,
        input_x: int,
        prediction: int,
        size: int,
        channels: int,
        step: int,
        *numbers: float,
    ) -> None:
        at, batch, rows = self._memory.at, launch.grid[1], size // channels
        draws = (
            diffusion_update.drawn(at(seeds, (batch,), np.uint64), step, (rows, channels))
            if seeds
            else at(read, (batch, rows, channels), np.float32)
        )
        network = at(raw, (2 * batch * rows, 2 * channels), types[0])
        earlier, guided = diffusion_update.diffusion_update(at(x, draws.shape, np.float32), network, draws, numbers[:8], numbers[8])
        at(next_x, draws.shape, np.float32)[...] = earlier
        if input_x:
            at(input_x, (2, *draws.shape), types[0])[...] = earlier
        if prediction:
            at(prediction, guided.shape, np.float32)[...] = guided


def emulated(size: int = 256 << 20, fuses: bool = True) -> FusedContext:
    """A context on `size` bytes of emulated memory; `fuses`: convolutions take bias and residual along."""
    memory = Memory(size)
    context = object.__new__(FusedContext)
    vars(context).update(
        device=Device(memory), stream=Stream(), library=Library(memory), blas=Blas(memory), cudnn=Cudnn(memory, fuses), memory=memory
    )
    return context
