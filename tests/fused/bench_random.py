"""Measures the fused engine at the released model's sizes with random weights.

    python tests/fused/bench_random.py [--side 512|1024] [--batch N] [--runs N] [--text-layers N] [--low-vram] [--json FILE]
                                       [--bundle FOLDER]

Prints the memory plan, the time to load, what a first and a second picture cost, and the median of every stage after that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from random_bundle import HART_512, HART_1024, RELEASED, make_bundle

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.fused.backend import FusedBackend
from hart_edge.runtime.fused.loop import FusedLoop
from hart_edge.runtime.fused.memory_plan import MemoryPlan, plan_memory
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.timing import StageTimes


def measure(pipe: Pipeline, batch: int, runs: int) -> list[dict[str, float]]:
    """Seconds per stage of every run, the first two included."""
    results = []
    for run in range(runs + 2):
        times = StageTimes(pipe.memory.wait)
        pipe.generate_batch(["two red circles"] * batch, seeds=[run * batch + j for j in range(batch)], times=times)
        results.append(times.seconds)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, choices=(512, 1024), default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--text-layers", type=int, default=RELEASED.text_layers)
    parser.add_argument("--low-vram", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bundle", type=Path, help="Take this one; made there if the folder is missing.")
    asked = parser.parse_args()
    spec = {512: HART_512, 1024: HART_1024}[asked.side]
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.bundle or Path(temporary) / "bundle"
        if not folder.exists():
            make_bundle(folder, spec, replace(RELEASED, text_layers=asked.text_layers))
        bundle = Bundle(folder, check_files=False)
        start = time.perf_counter()
        plan = plan_memory(bundle, asked.batch, asked.low_vram)
        backend = FusedBackend(low_vram=asked.low_vram)
        with Pipeline._open(bundle, backend) as pipe:
            loaded = time.perf_counter() - start
            results = measure(pipe, asked.batch, asked.runs)
            report(pipe, plan, loaded, results, asked.json)


def report(pipe: Pipeline, plan: MemoryPlan, loaded: float, results: list[dict[str, float]], target: Path | None) -> None:
    assert isinstance(pipe.loop, FusedLoop)
    medians = {stage: 1000 * statistics.median(run[stage] for run in results[2:]) for stage in results[0]}
    totals = [1000 * sum(run.values()) for run in results]
    device = pipe.loop._model.context.device
    free, total = device.memory()
    summary = {
        "planned": plan.to_json(),
        "planned peak MiB": plan.peak / 2**20,
        "own peak MiB": device.use.peak / 2**20,
        "GPU memory in use MiB": (total - free) / 2**20,
        "load s": loaded,
        "first ms": totals[0],
        "second ms": totals[1],
        "median ms": statistics.median(totals[2:]),
        "stages ms": medians,
        "refused by cuDNN": sorted({attention.refusal for attention in pipe.loop._model.attentions.built if attention.refusal}),
    }
    print(json.dumps(summary, indent=1))
    if target:
        target.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
