"""Measures the fused engine at the released model's sizes with random weights.

    python tests/fused/bench_random.py [--side 512|1024] [--batch N] [--runs N] [--text-layers N] [--json FILE]

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

from hart_edge.runtime.fused.backend import FusedBackend
from hart_edge.runtime.fused.loop import FusedLoop
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.timing import StageTimes


def measure(pipe: Pipeline, batch: int, runs: int) -> list[dict[str, float]]:
    """Seconds per stage of every run, the first two included."""
    results = []
    for run in range(runs + 2):
        times = StageTimes()
        pipe.generate_batch(["two red circles"] * batch, seeds=[run * batch + j for j in range(batch)], times=times)
        results.append(times.seconds)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, choices=(512, 1024), default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--text-layers", type=int, default=RELEASED.text_layers)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    spec = {512: HART_512, 1024: HART_1024}[asked.side]
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle", spec, replace(RELEASED, text_layers=asked.text_layers))
        start = time.perf_counter()
        backend = FusedBackend()
        with Pipeline._open(bundle, backend) as pipe:
            loaded = time.perf_counter() - start
            results = measure(pipe, asked.batch, asked.runs)
            report(pipe, loaded, results, asked.json)


def report(pipe: Pipeline, loaded: float, results: list[dict[str, float]], target: Path | None) -> None:
    assert isinstance(pipe.loop, FusedLoop)
    assert pipe.loop._session is not None
    phases = {phase or "lasting": size / 2**20 for phase, size in pipe.loop._session.workspace.plan.phases.items()}
    medians = {stage: 1000 * statistics.median(run[stage] for run in results[2:]) for stage in results[0]}
    totals = [1000 * sum(run.values()) for run in results]
    free, total = pipe.loop._model.context.device.memory()
    summary = {
        "memory plan MiB": phases,
        "weights MiB": pipe.loop._model.weights.bytes / 2**20,
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
