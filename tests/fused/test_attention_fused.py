"""Attention to a cache as the fused engine picks it: cuDNN for float16, our kernel for float32, both against NumPy."""

from __future__ import annotations

from contextlib import ExitStack

import bench_attention
import numpy as np
import pytest
from components import allocated, put
from emulated_scales import emulated_gpu
from tolerances import assert_close

from hart_edge.plugins import Buffer, attention
from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.fused.attention import Attention, AttentionShape
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.workspace import Memory

SHAPES = [
    AttentionShape(1, 32, 32, 4, 64, 711, "float16", 0.03125),
    AttentionShape(2, 4, 36, 4, 64, 711, "float16", 0.03125),
    AttentionShape(2, 1, 33, 3, 32, 50, "float16", 0.05),
    AttentionShape(4, 25, 111, 2, 128, 200, "float16", 0.02),
    AttentionShape(2, 9, 41, 2, 32, 41, "float32", 0.1),
    AttentionShape(2, 150, 181, 3, 64, 200, "float16", 0.03125),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(whole_context: FusedContext, shape: AttentionShape) -> None:
    rng = np.random.default_rng(shape.length)
    q = rng.standard_normal((shape.rows, shape.tokens, shape.heads, shape.head_dim)).astype(shape.dtype)
    cache = (shape.rows + 1, shape.heads, shape.capacity, shape.head_dim)  # a row more than the queries have
    k, v = (rng.standard_normal(cache).astype(shape.dtype) for _ in "kv")
    for x in (k, v):
        x[:, :, shape.length :] = np.nan  # must not be read

    def ask(memory: Memory) -> list[Buffer]:
        shapes = {"q": q.shape, "k": cache, "v": cache, "y": q.shape}
        return [memory.buffer(name, size, shape.dtype) for name, size in shapes.items()]

    with allocated(whole_context, ask) as (q_at, k_at, v_at, y_at):
        for buffer, array in ((q_at, q), (k_at, k), (v_at, v)):
            put(whole_context, buffer, array)
        chosen = Attention(whole_context, shape)
        hopper = whole_context.device.info.capability == 90
        assert chosen.flash == (hopper and shape.dtype == "float16" and shape.head_dim == 64)
        assert chosen.by_cudnn == (shape.dtype == "float16" and not chosen.flash), chosen.refusal
        chosen.run(q_at, k_at, v_at, y_at)
        want = attention.attention(q, k[: shape.rows], v[: shape.rows], shape.length, shape.scale)
        assert_close(whole_context.download(y_at), want, "float16" if shape.dtype == "float16" else "kernel float32")


def test_the_benchmarks_contenders_compute_the_same() -> None:
    context, shape = emulated_gpu(1 << 24), AttentionShape(2, 9, 41, 2, 64, 50, "float16", 0.03125)
    assert [bench_attention.shape_of(tokens).length for tokens in (4096, 16)] == [9750, 329]
    with ExitStack() as stack:
        memory = bench_attention.tensors(context, shape, stack)
        runs = bench_attention.contenders(context, shape, *memory)
        assert list(runs) == ["flash_attention", "cuDNN"]
        assert bench_attention.difference(context, runs, memory[3]) < 1e-3
        wrong = {"nothing": lambda: context.zero(memory[3]), "cuDNN": runs["cuDNN"]}
        assert bench_attention.difference(context, wrong, memory[3]) == pytest.approx(1)


@pytest.mark.parametrize(("capability", "dtype", "head_dim"), [(120, "float16", 64), (90, "float32", 64), (90, "float16", 32)])
def test_hoppers_kernel_runs_only_where_it_can(capability: int, dtype: str, head_dim: int) -> None:
    context = emulated_gpu(1 << 20)
    context.device.info.capability = capability
    assert not Attention(context, AttentionShape(2, 999, 1300, 4, head_dim, 1300, dtype, 0.1)).flash


def test_what_cudnn_refuses_runs_in_our_kernel() -> None:
    context = emulated_gpu(1 << 20)

    def refuse(*_: object, **__: object) -> None:
        raise EngineError("planning attention failed: no engine.")

    context.cudnn.build = refuse  # type: ignore[method-assign]
    chosen = Attention(context, SHAPES[2])
    assert not chosen.by_cudnn
    assert "no engine" in chosen.refusal
