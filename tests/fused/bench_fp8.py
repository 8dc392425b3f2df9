"""Times the linear layers of the released model alone: float16, and FP8 with either way of summing, with the error of each.

    python tests/fused/bench_fp8.py [--rows 8192,2592,512,32] [--json FILE]

The time is a share of a CUDA graph that goes through more weights and inputs than a cache holds. The error is that of 256 rows to
the product in float64 of the same (quantised) numbers, ‖difference‖ / ‖product‖; rounding to float16 alone gives about 2e-4.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hart_edge.plugins.kernel import FP8
from hart_edge.plugins.quantize import Array, e4m3_codes, e4m3_values
from hart_edge.runtime.fused.blas import Shape
from hart_edge.runtime.fused.context import FusedContext

LAYERS = {"qkv": (1536, 4608), "proj": (1536, 1536), "gate, up": (1536, 8192), "down": (4096, 1536), "diffusion": (1024, 3072)}
"""In, out."""
KINDS = {"float16": ("float16", False), "FP8": (FP8, False), "FP8 fast": (FP8, True)}
"""Type, and whether sums stay in the tensor cores' own format."""
WORKING_SET = 256 << 20
LAUNCHES, REPEATS, CHECKED = 40, 7, 256
SCALE = np.float32(0.01)
"""Of x and w alike: codes of deviation 90 stand for numbers of deviation 0.9."""


@dataclass(frozen=True)
class Operands:
    """x [m, k], w, y [m, n] and the two scales in device memory, and the first two as they lie there."""

    addresses: tuple[int, int, int]
    scale: int
    x: Array
    w: Array

    def runner(self, context: FusedContext, shape: Shape) -> Callable[[], None]:
        plan = context.blas.plan(shape)
        return lambda: plan.run(*self.addresses, context.stream, scales=(self.scale, self.scale))


def operands(context: FusedContext, stack: ExitStack, shape: Shape, seed: int) -> Operands:
    """Normal numbers; a few million, repeated."""
    row = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32)
    stored = e4m3_codes(row * 90) if shape.dtype == FP8 else row.astype(np.float16)
    x, w = np.resize(stored, (shape.m, shape.k)), np.resize(stored[::-1], (shape.n, shape.k) if shape.transposed else (shape.k, shape.n))
    buffers = [stack.enter_context(context.device.buffer(size)) for size in (x.nbytes, w.nbytes, 2 * shape.m * shape.n, 4)]
    for buffer, array in zip((buffers[0], buffers[1], buffers[3]), (x, w, np.array([SCALE], np.float32)), strict=True):
        buffer.upload(array, context.stream)
    return Operands((buffers[0].address, buffers[1].address, buffers[2].address), buffers[3].address, x, w)


def shape_of(rows: int, layer: str, kind: str) -> Shape:
    (inner, outer), (dtype, fast) = LAYERS[layer], KINDS[kind]
    return Shape(rows, outer, inner, dtype, "float16", transposed=dtype == FP8, fast=fast)


def microseconds(context: FusedContext, shape: Shape) -> float:
    """Median time of one product."""
    item = 1 if shape.dtype == FP8 else 2
    each = item * (shape.m + shape.n) * shape.k + 2 * shape.m * shape.n
    with ExitStack() as stack:
        runs = [operands(context, stack, shape, i).runner(context, shape) for i in range(max(2, min(12, -(-WORKING_SET // each))))]

        def record() -> None:
            for i in range(LAUNCHES):
                runs[i % len(runs)]()

        record()
        graph = stack.enter_context(context.stream.capture(record))
        graph.launch(context.stream)
        times = []
        for _ in range(REPEATS):
            with context.device.event() as start, context.device.event() as end:
                start.record(context.stream)
                graph.launch(context.stream)
                end.record(context.stream)
                end.synchronize()
                times.append(end.since(start))
        context.stream.synchronize()
        return 1000 * statistics.median(times) / LAUNCHES


def error(context: FusedContext, shape: Shape) -> float:
    """Of the product itself, without what quantising has cost."""
    with ExitStack() as stack:
        made = operands(context, stack, shape, 0)
        made.runner(context, shape)()
        y = np.empty((shape.m, shape.n), np.float16)
        context.device.call("reading", context.device.driver.download, y, made.addresses[2], context.stream.handle)
        context.stream.synchronize()
    real = [e4m3_values(a) * SCALE if shape.dtype == FP8 else a for a in (made.x, made.w)]
    x, w = (a.astype(np.float64) for a in real)
    want = x @ (w.T if shape.transposed else w)
    return float(np.linalg.norm(y - want) / np.linalg.norm(want))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="8192,2592,512,32", help="scales of 64, 36, 16 and 4 tokens a side, guided")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results = []
    table = Table("rows", "layer", *(f"{kind}: µs, TFLOP/s" for kind in KINDS), *(f"error {kind}" for kind in KINDS))
    with FusedContext() as context:
        table.title = context.device.info.name
        for layer in LAYERS:
            errors = {kind: error(context, shape_of(CHECKED, layer, kind)) for kind in KINDS}
            for rows in map(int, asked.rows.split(",")):
                times = {kind: microseconds(context, shape_of(rows, layer, kind)) for kind in KINDS}
                work = 2 * rows * LAYERS[layer][0] * LAYERS[layer][1]
                cells = [f"{time:.1f}, {work / time / 1e6:.0f}" for time in times.values()]
                table.add_row(str(rows), layer, *cells, *(f"{value:.1e}" for value in errors.values()))
                results.append({"rows": rows, "layer": layer, "microseconds": times, "errors": errors})
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
