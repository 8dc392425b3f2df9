"""What function bodies cost on the CPU: `PYTHONPATH=tests python tests/build/bench_bodies.py`. Why operators are fused at build time.

Every engine of the bundled model in ONNX Runtime, as it is and with the operators of `plugins/graph_ops.py`, whose bodies ONNX
Runtime inlines; the two take turns. Prints the medians of loading and of running, one thread.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from test_fuse import FUSED, feeds

from hart_edge.export.build.fuse import FINDERS, fuse
from hart_edge.runtime.bundle import bundled_folder

RUNS = 15


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(bundled_folder() / "weights.safetensors", folder)
        for name in [name for name, fused in FUSED.items() if fused]:
            model = onnx.load(bundled_folder() / f"{name}.onnx", load_external_data=False)
            fuse(model, FINDERS)
            onnx.save(model, folder / f"{name}.onnx")
            paths = {"as exported": bundled_folder() / f"{name}.onnx", "with bodies": folder / f"{name}.onnx"}
            loads = turns({key: partial(session, path) for key, path in paths.items()})
            sessions = {key: session(path) for key, path in paths.items()}
            inputs = feeds(sessions["as exported"])
            runs = turns({key: partial(engine.run, None, inputs) for key, engine in sessions.items()})
            print(
                name,
                *(f"{what} {key} {1000 * seconds[key]:.1f} ms" for what, seconds in (("load", loads), ("run", runs)) for key in paths),
                sep=", ",
            )


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of every call."""
    samples: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(RUNS):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            samples[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in samples.items()}


if __name__ == "__main__":
    main()
