"""Measures the fused engine at the released model's sizes with random weights, in fp16, in FP8, or both in turn.

    python tests/fused/bench_random.py [--side 512|1024] [--precision fp16|fp8|both] [--parts transformer,diffusion,text]
        [--batch N] [--runs N] [--text-layers N] [--low-vram] [--fast-accumulation] [--bundle FOLDER] [--json FILE]

Prints the memory plan, the time to load, what a first and a second picture cost, and the median of every stage after that. With
both precisions both are loaded, they take turns picture by picture, and every stage's ratio is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from random_bundle import FP8_PRODUCTS, HART_512, HART_1024, RELEASED, make_bundle
from rich.console import Console
from rich.table import Table

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.fused.backend import FusedBackend
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.loop import FusedLoop
from hart_edge.runtime.fused.memory_plan import MemoryPlan, plan_memory
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.timing import StageTimes


@dataclass
class Contender:
    """One precision: its pipeline, what was planned for it, seconds to load, and seconds per stage of every run."""

    pipe: Pipeline
    plan: MemoryPlan
    loaded: float
    runs: list[dict[str, float]] = field(default_factory=list)

    def draw(self, batch: int) -> None:
        times, run = StageTimes(self.pipe.memory.wait), len(self.runs)
        self.pipe.generate_batch(["two red circles"] * batch, seeds=[run * batch + j for j in range(batch)], times=times)
        self.runs.append(times.seconds)

    @property
    def stages(self) -> dict[str, float]:
        """Median milliseconds, without the first two runs."""
        return {stage: 1000 * statistics.median(run[stage] for run in self.runs[2:]) for stage in self.runs[0]}

    def summary(self) -> dict[str, Any]:
        assert isinstance(self.pipe.loop, FusedLoop)
        totals = [1000 * sum(run.values()) for run in self.runs]
        model = self.pipe.loop._model
        free, total = model.context.device.memory()
        return {
            "device": model.context.device.info.name,
            "FP8 products": len(model.plan.fp8),
            "planned": self.plan.to_json(),
            "planned peak MiB": self.plan.peak / 2**20,
            "own peak MiB": model.context.device.use.peak / 2**20,
            "GPU memory in use MiB": (total - free) / 2**20,
            "load s": self.loaded,
            "first ms": totals[0],
            "second ms": totals[1],
            "median ms": statistics.median(totals[2:]),
            "stages ms": self.stages,
            "refused by cuDNN": sorted({attention.refusal for attention in model.attentions.built if attention.refusal}),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, choices=(512, 1024), default=1024)
    parser.add_argument("--precision", choices=("fp16", "fp8", "both"), default="fp16")
    parser.add_argument("--parts", default=",".join(FP8_PRODUCTS), help="what is FP8")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--text-layers", type=int, default=RELEASED.text_layers)
    parser.add_argument("--low-vram", action="store_true")
    parser.add_argument("--fast-accumulation", action="store_true", help="of FP8 products; see runtime/fused/blas.py")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bundle", type=Path, help="Take FOLDER/fp16 or FOLDER/fp8; made there if missing.")
    asked = parser.parse_args()
    precisions = ("fp16", "fp8") if asked.precision == "both" else (asked.precision,)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = asked.bundle or Path(temporary)
        contenders = {precision: opened(asked, precision, root / precision, stack) for precision in precisions}
        for _ in range(asked.runs + 2):
            for contender in contenders.values():
                contender.draw(asked.batch)
        report(contenders, asked.json)


def opened(asked: argparse.Namespace, precision: str, folder: Path, stack: ExitStack) -> Contender:
    spec = {512: HART_512, 1024: HART_1024}[asked.side]
    parts = asked.parts.split(",") if precision == "fp8" else ()
    if not folder.exists():
        make_bundle(folder, spec, replace(RELEASED, text_layers=asked.text_layers), fp8=parts)
    bundle = Bundle(folder, check_files=False)
    start = time.perf_counter()
    plan, context = plan_memory(bundle, asked.batch, asked.low_vram), FusedContext()
    context.blas.fast_accumulation = asked.fast_accumulation
    pipe = stack.enter_context(Pipeline._open(bundle, FusedBackend(context, asked.low_vram)))
    return Contender(pipe, plan, time.perf_counter() - start)


def report(contenders: dict[str, Contender], target: Path | None) -> None:
    summaries: dict[str, Any] = {precision: contender.summary() for precision, contender in contenders.items()}
    print(json.dumps(summaries, indent=1))
    if target:
        target.write_text(json.dumps(summaries, indent=1))
    table = Table("ms", *contenders, *(["fp16 / fp8"] if len(contenders) == 2 else []))
    rows = {stage: [contender.stages[stage] for contender in contenders.values()] for stage in next(iter(contenders.values())).stages}
    for stage, values in (rows | {"all": [summary["median ms"] for summary in summaries.values()]}).items():
        table.add_row(stage, *(f"{value:.2f}" for value in values), *([f"{values[0] / values[1]:.3f}"] if len(values) == 2 else []))
    Console().print(table)


if __name__ == "__main__":
    main()
