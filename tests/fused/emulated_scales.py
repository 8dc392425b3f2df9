"""The emulated GPU with everything that a whole generation needs: the scale loop's kernels, attention, captures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from emulated_cudnn import Cudnn, Description, Tensor
from emulator import Block, Device, Library, Memory, Stream, emitted, emulated

from hart_edge.plugins import (
    Launch,
    attention,
    context_entry,
    flash_attention,
    guided_sample,
    latent_sum,
    next_scale,
    rope_cache,
    rope_tables,
    swiglu,
)
from hart_edge.plugins.guided_sample import Sampling
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.fused.context import FusedContext


class Replay:
    """Stands for a `Graph`: capturing runs nothing, launching runs everything."""

    def __init__(self, record: Callable[[], None]) -> None:
        self._record = record

    def launch(self, stream: Any) -> None:
        self._record()

    def close(self) -> None: ...


class CapturingStream(Stream):
    def capture(self, record: Callable[[], None]) -> Replay:
        return Replay(record)


class ReadableBlock(Block):
    def download(self, array: Array, stream: Any, offset: int = 0) -> None:
        array[...] = self._memory.at(self.address + offset, array.shape, array.dtype)


class FillingDevice(Device):
    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        vars(self.driver).update(fill=self._fill)

    def _fill(self, target: int, value: int, size: int, stream: Any) -> None:
        self._memory.at(target, (size,), np.uint8)[...] = value

    def buffer(self, size: int) -> Block:
        return ReadableBlock(self._memory, size)


class AttentionDescription(Description):
    """Also takes what `runtime/fused/attention.py` describes."""

    def tensor(self, name: str, dim: list[int], stride: list[int], data_type: Any = None) -> Tensor:
        return Tensor(name=name, dim=dim, stride=stride)

    def sdpa(self, q: Tensor, k: Tensor, v: Tensor, generate_stats: bool, attn_scale: float, name: str) -> tuple[Tensor, None]:
        assert not generate_stats
        return Tensor("sdpa", (q, k, v), scale=attn_scale), None


class AttentionGraph:
    """A described attention that runs on the emulated memory."""

    def __init__(self, memory: Memory, dtype: str, tensors: Mapping[str, Tensor]) -> None:
        self._memory, self._dtype, self._tensors = memory, dtype, tensors

    def run(self, **addresses: int) -> None:
        q, k, v, y = (self._array(name, addresses[name]) for name in "qkvy")
        scores = self._tensors["y"].facts["scale"] * q.astype(np.float32) @ k.astype(np.float32).swapaxes(2, 3)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y[...] = weights @ v.astype(np.float32) / weights.sum(axis=-1, keepdims=True)

    def _array(self, name: str, address: int) -> Array:
        dim, stride, item = self._tensors[name].facts["dim"], self._tensors[name].facts["stride"], np.dtype(self._dtype).itemsize
        count = sum((n - 1) * s for n, s in zip(dim, stride, strict=True)) + 1
        flat = self._memory.at(address, (count,), self._dtype)
        return np.lib.stride_tricks.as_strided(flat, dim, [s * item for s in stride])


class FullCudnn(Cudnn):
    def build(self, what: str, shape: object, dtype: str, describe: Callable[[Any], Mapping[str, Tensor]], choose: bool = True) -> Any:
        if what.startswith("attention"):
            return AttentionGraph(self._memory, dtype, describe(AttentionDescription()))
        return super().build(what, shape, dtype, describe)


class FullLibrary(Library):
    """The kernels of the scale loop, the context and the text encoder, by their truths."""

    def _swiglu(self, launch: Launch, types: list[Any], gate: int, up: int, y: int, width: int, stride: int, inverse: float) -> None:
        rows, dtype = launch.grid[0], types[0]
        parts = [self._memory.strided(part, (1, 0), (rows, stride), width, dtype)[0] for part in (gate, up)]
        self._memory.at(y, (rows, width), types[1])[...] = emitted(swiglu.swiglu(*parts), types, inverse)

    def _rope_cache(
        self,
        launch: Launch,
        types: list[Any],
        qkv: int,
        q_bias: int,
        v_bias: int,
        frequency: int,
        positions: int,
        gain: int,
        q: int,
        k: int,
        v: int,
        *numbers: int,
    ) -> None:
        at, dtype = self._memory.at, types[0]
        tokens, heads, head_dim, side, grid, capacity, start = numbers
        rows, width = launch.grid[0] // tokens, heads * head_dim
        caches = [at(cache, (rows, heads, capacity, head_dim), dtype) for cache in (k, v)]
        made = rope_cache.rope_cache(
            at(qkv, (rows * tokens, 3 * width), dtype), at(q_bias, (width,), dtype), at(v_bias, (width,), dtype),
            at(frequency, (head_dim // (4 if side else 2),), np.float32), at(positions, (rows,) if side else (rows, tokens), np.int64),
            *caches, start, side, grid, at(gain, (heads,), dtype) if gain else None,
        )  # fmt: skip
        for target, value in zip((at(q, (rows, tokens, heads, head_dim), dtype), *caches), made, strict=True):
            target[...] = value

    def _rope_tables(
        self, launch: Launch, types: list[Any], qkv: int, cos: int, sin: int, gain: int, q: int, k: int, v: int, *numbers: int
    ) -> None:
        at, dtype = self._memory.at, types[0]
        tokens, heads, kv_heads, head_dim, capacity, start, table_rows = numbers
        rows = launch.grid[0] // tokens
        caches = [at(cache, (rows, kv_heads, capacity, head_dim), dtype) for cache in (k, v)]
        tables = [at(table, (table_rows, tokens, head_dim), dtype) for table in (cos, sin)]
        gains = at(gain, (heads,), dtype) if gain else None
        made = rope_tables.rope_tables(
            at(qkv, (rows * tokens, (heads + 2 * kv_heads) * head_dim), dtype), *tables, *caches, start, heads, gains
        )
        for target, value in zip((at(q, (rows, tokens, heads, head_dim), dtype), *caches), made, strict=True):
            target[...] = value

    def _attention(self, launch: Launch, types: list[Any], q: int, k: int, v: int, y: int, mask: int, first: int, *numbers: Any) -> None:
        at, dtype, rows = self._memory.at, types[0], launch.grid[2]
        tokens, heads, kv_heads, head_dim, capacity, length, scale = numbers
        shape, cache = (rows, tokens, heads, head_dim), (rows, kv_heads, capacity, head_dim)
        limits = (at(mask, (rows, tokens), np.int64), at(first, (rows,), np.int64)) if mask else (None, None)
        at(y, shape, dtype)[...] = attention.attention(
            at(q, shape, dtype), at(k, cache, dtype), at(v, cache, dtype), length, scale, *limits
        )

    def _flash_attention(self, launch: Launch, types: list[Any], q: int, k: int, v: int, y: int, *numbers: Any) -> None:
        at, rows = self._memory.at, launch.grid[2]
        tokens, heads, capacity, length, scale = numbers
        shape, cache = (rows, tokens, heads, 64), (rows, heads, capacity, 64)
        given = at(q, shape, "float16"), at(k, cache, "float16"), at(v, cache, "float16")
        at(y, shape, "float16")[...] = flash_attention.flash_attention(*given, length, scale)

    def _context_entry(self, launch: Launch, types: list[Any], e: int, level: int, out: int, pooled: int, tokens: int, width: int) -> None:
        at, dtype, batch = self._memory.at, types[0], launch.grid[1]
        x, most = context_entry.context_entry(at(e, (batch, tokens, width), dtype), at(level, (width,), dtype))
        at(out, x.shape, dtype)[...] = x
        at(pooled, most.shape, dtype)[...] = most

    def _latent_sum(self, launch: Launch, types: list[Any], f_hat: int, codes: int, residual: int, out: int, size: int) -> None:
        a, b, c = (self._memory.at(p, (size,), np.float32) if p else None for p in (f_hat, codes, residual))
        assert a is not None and b is not None
        self._memory.at(out, (size,), np.float32)[...] = latent_sum.latent_sum(a, b, c)

    def _guided_sample(
        self,
        launch: Launch,
        types: list[Any],
        conditional: int,
        unconditional: int,
        seeds: int,
        codebook: int,
        token_noise: int,
        smooth_noise: int,
        token: int,
        codes: int,
        *numbers: Any,
    ) -> None:
        size, channels, _, take, top_k, limit, sharpen, _, scale = numbers
        (tokens, batch, _), at, smooth = launch.grid, self._memory.at, "true" in launch.kernel.expression
        shape = (batch, tokens, size)
        how = Sampling(take, top_k, 1 - limit if limit >= 0 else 0.0, sharpen - 1, scale, smooth)
        logits = at(conditional, shape, np.float32), at(unconditional, shape, np.float32) if unconditional else None
        given = [at(n, shape, np.float32) for n in (token_noise, smooth_noise)] if token_noise else None
        with _noise(given):
            chosen, mixed = guided_sample.guided_sample(
                *logits, at(seeds, (batch,), np.uint64), at(codebook, (size, channels), np.float32), how
            )
        at(token, chosen.shape, np.int64)[...] = chosen
        at(codes, mixed.shape, np.float32)[...] = mixed

    def _upsample_phi(
        self,
        launch: Launch,
        types: list[Any],
        h: int,
        weight: int,
        bias: int,
        f_hat: int,
        source: int,
        grid: int,
        channels: int,
        ratio: float,
    ) -> None:
        at, batch = self._memory.at, launch.grid[2]
        state = at(f_hat, (batch, grid * grid, channels), np.float32)
        phi = at(weight, (3, 3, channels, channels), np.float32), at(bias, (channels,), np.float32)
        nothing = np.zeros((channels, 1), np.float32), np.zeros(1, np.float32)
        codes = at(h, (batch, source * source, channels), np.float32)
        state[...], _ = next_scale.next_scale(codes, state, phi, ratio, nothing, np.zeros(1, np.float32), 1)

    def _pool_embed(
        self,
        launch: Launch,
        types: list[Any],
        f_hat: int,
        weight: int,
        bias: int,
        level: int,
        x: int,
        side: int,
        grid: int,
        channels: int,
        width: int,
    ) -> None:
        at, batch, dtype = self._memory.at, launch.grid[2], types[0]
        state = at(f_hat, (batch, grid * grid, channels), np.float32)
        nothing = np.zeros((3, 3, channels, channels), np.float32), np.zeros(channels, np.float32)
        word = at(weight, (channels, width), np.float32), at(bias, (width,), np.float32)
        still = np.zeros((batch, 1, channels), np.float32)
        _, made = next_scale.next_scale(still, state, nothing, 0.0, word, at(level, (width,), np.float32), side, np.dtype(dtype).name)
        at(x, made.shape, dtype)[...] = made


class _noise:
    """Replaces the truth's noise by given arrays, token noise first, for the block."""

    def __init__(self, given: list[Array] | None) -> None:
        self._given = given

    def __enter__(self) -> None:
        self._real = guided_sample.philox
        if self._given is not None:
            arrays = {guided_sample.philox.TOKEN: iter(self._given[0]), guided_sample.philox.SMOOTH: iter(self._given[1])}
            guided_sample.philox = SimpleNamespace(  # type: ignore[assignment]
                TOKEN=self._real.TOKEN, SMOOTH=self._real.SMOOTH, gumbel=lambda seed, purpose, scale, size: next(arrays[purpose])
            )

    def __exit__(self, *_: object) -> None:
        guided_sample.philox = self._real


def emulated_gpu(size: int = 512 << 20) -> FusedContext:
    """A context on `size` bytes of emulated memory that runs whole generations."""
    context = emulated(1 << 16)
    memory = Memory(size)
    blas = type(context.blas)(memory)
    vars(context).update(
        device=FillingDevice(memory),
        stream=CapturingStream(),
        library=FullLibrary(memory),
        blas=blas,
        cudnn=FullCudnn(memory, True),
        memory=memory,
    )
    return context
