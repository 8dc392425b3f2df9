"""Times the transformer's attention alone at the released model's scales: Hopper's kernel against cuDNN, in random turns.

    python tests/fused/bench_attention.py [--tokens 4096,2304,1296,729,441,16] [--json FILE]

Guided 1024 px pictures: 2 rows of 24 heads of 64, keys of all scales so far. The time is a share of a CUDA graph of several launches,
the median of all turns; the difference is ‖first − second‖ / ‖second‖ of what both compute from the same normal numbers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hart_edge.plugins import Buffer, flash_attention
from hart_edge.plugins.bench_case import HEAD_DIM, HEADS, PATCH_NUMS, TEXT
from hart_edge.plugins.bench_scales import ATTENTION_SCALE, capacity
from hart_edge.runtime.cuda import Graph
from hart_edge.runtime.errors import HartError
from hart_edge.runtime.fused.attention import AttentionShape, build_graph
from hart_edge.runtime.fused.context import FusedContext

LAUNCHES, TURNS = 8, 25


def shape_of(tokens: int) -> AttentionShape:
    """The scale of so many tokens."""
    length = TEXT + sum(side**2 for side in PATCH_NUMS[1024][1:] if side**2 <= tokens)
    return AttentionShape(2, tokens, length, HEADS, HEAD_DIM, capacity(1024), "float16", ATTENTION_SCALE)


def contenders(context: FusedContext, shape: AttentionShape, q: Buffer, k: Buffer, v: Buffer, y: Buffer) -> dict[str, Callable[[], None]]:
    """Each puts one attention on the stream."""
    launch, graph = flash_attention.launch(q, k, v, y, shape.length, shape.scale), build_graph(context.cudnn, shape)
    return {
        "flash_attention": lambda: context.launch(launch),
        "cuDNN": lambda: graph.run(q=q.address, k=k.address, v=v.address, y=y.address),
    }


def tensors(context: FusedContext, shape: AttentionShape, stack: ExitStack) -> list[Buffer]:
    """q, k and v of normal numbers, a million of them repeated, and y."""
    queries, cache = (shape.rows, shape.tokens, shape.heads, shape.head_dim), (shape.rows, shape.heads, shape.capacity, shape.head_dim)
    made = []
    for seed, size in enumerate((queries, cache, cache, queries)):
        numbers = np.resize(np.random.default_rng(seed).standard_normal(1_000_003).astype(np.float16), size)
        memory = stack.enter_context(context.device.buffer(numbers.nbytes))
        made.append(Buffer(memory.address, size, "float16"))
        context.upload(made[-1], numbers)
    return made


def difference(context: FusedContext, runs: dict[str, Callable[[], None]], y: Buffer) -> float:
    """Between what the two compute; loads their code besides, which a capture cannot."""
    found = []
    for run in runs.values():
        run()
        found.append(context.download(y).astype(np.float64))
    return float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))


def milliseconds(context: FusedContext, runs: dict[str, Callable[[], None]], stack: ExitStack) -> dict[str, float]:
    """Median time of one attention."""

    def several(run: Callable[[], None]) -> None:
        for _ in range(LAUNCHES):
            run()

    graphs = {name: stack.enter_context(context.stream.capture(partial(several, run))) for name, run in runs.items()}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name in random.sample(list(graphs), len(graphs)):
            spent[name].append(once(context, graphs[name]))
    return {name: statistics.median(times) / LAUNCHES for name, times in spent.items()}


def once(context: FusedContext, graph: Graph) -> float:
    with context.device.event() as start, context.device.event() as end:
        start.record(context.stream)
        graph.launch(context.stream)
        end.record(context.stream)
        end.synchronize()
        return end.since(start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="4096,2304,1296,729,441,16")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    table, results = Table("queries on keys", "flash_attention: ms", "cuDNN: ms", "ratio", "difference"), []
    with FusedContext() as context:
        info = context.device.info
        if info.capability != flash_attention.ARCHITECTURE:
            raise HartError(f"{info.name} has SM{info.capability}; flash_attention runs on SM{flash_attention.ARCHITECTURE} alone.")
        table.title = info.name
        for tokens in map(int, asked.tokens.split(",")):
            shape = shape_of(tokens)
            with ExitStack() as stack:
                memory = tensors(context, shape, stack)
                runs = contenders(context, shape, *memory)
                off, times = difference(context, runs, memory[3]), milliseconds(context, runs, stack)
                context.stream.synchronize()
            first, second = times.values()
            table.add_row(f"{tokens} on {shape.length}", f"{first:.4f}", f"{second:.4f}", f"{first / second:.2f}", f"{off:.1e}")
            results.append({"tokens": tokens, "length": shape.length, "milliseconds": times, "difference": off})
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))
    Console(width=120).print(table)


if __name__ == "__main__":
    try:
        main()
    except HartError as error:
        raise SystemExit(str(error)) from error
