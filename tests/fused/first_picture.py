"""What passes between the start of a process and its first picture, with the released model's sizes and random weights.

    python tests/fused/first_picture.py [--side 512|1024] [--batch N] [--starts N] [--bundle FOLDER] [--json FILE]

Starts new processes on one bundle, which is made first unless --bundle names one (it is made there when the folder is missing).
The first start compiles kernels and measures plans where the caches do not hold them, and Python's bytecode where no install has
made it; the later ones are what a user waits for.
A part's time includes what it calls: `plan product` is inside `session`, and so on. Times are milliseconds.
"""

from __future__ import annotations

import time

STARTED = time.time()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import wraps  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

SPENT: dict[str, list[float]] = {}
"""Milliseconds of every call, by part."""


def watch(owner: Any, name: str, part: str) -> None:
    """Time every call of a function or a method."""
    function: Callable[..., Any] = getattr(owner, name)

    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            SPENT.setdefault(part, []).append(1000 * (time.perf_counter() - start))

    setattr(owner, name, timed)


def watch_parts() -> None:
    from hart_edge.runtime import cuda, kernels, tokenizer
    from hart_edge.runtime.fused import attention, blas, blocks, context, conv, cudnn, model, parts, plans, program, session, stages, upload

    watch(context, "_import_libraries", "import of nvmath and cudnn (in a thread)")
    watch(cuda.Device, "__init__", "driver and context")
    watch(blas.Blas, "__init__", "cuBLASLt handle")
    watch(cudnn.Cudnn, "__init__", "cuDNN handle")
    watch(model.ModelPlan, "__init__", "sizes of the weights")
    watch(parts.Part, "begin", "weights taken apart")
    watch(upload.Uploader, "__init__", "page-locked memory")
    watch(upload.Uploader, "__exit__", "rest of the weights to the GPU")
    watch(blocks.Caches, "reset", "unconditional context into the caches")
    watch(tokenizer.PromptTokenizer, "__init__", "tokenizer")
    watch(session.Session, "__init__", "session put together")
    watch(stages.TextStage, "_fill", "text encoder put together")
    watch(stages.DecoderStage, "_fill", "decoder put together")
    watch(blas.Matmul, "__init__", "plan product")
    watch(conv.Convolution, "__init__", "plan convolution")
    watch(attention.Attention, "__init__", "plan attention")
    watch(plans.Plans, "fastest", "measuring plans (first start only)")
    watch(kernels.KernelLibrary, "_load", "kernels compiled or loaded")
    watch(program.Program, "plain", "first run of the work, piece by piece")


def draw(folder: Path, batch: int, spawned: float) -> dict[str, Any]:
    """Open the bundle in this process and draw twice."""
    from hart_edge.runtime.bundle import Bundle
    from hart_edge.runtime.pipeline import Pipeline
    from hart_edge.runtime.timing import StageTimes

    imported = time.time()
    watch_parts()
    watched = time.time()
    bundle = Bundle(folder, check_files=False)
    with Pipeline.open(bundle, backend="cuda") as pipe:
        loaded = time.time()
        stages = []
        for seed in (1, 2):
            times = StageTimes(pipe.memory.wait)
            pipe.generate_batch(["two red circles"] * batch, seeds=range(seed, seed + batch), times=times)
            stages.append({name: 1000 * seconds for name, seconds in times.seconds.items()})
            if seed == 1:
                first = time.time()
        second = time.time()
    return {
        "total to first picture": 1000 * (first - spawned),
        "interpreter": 1000 * (STARTED - spawned),
        "imports": 1000 * (imported - STARTED),
        "imports of the engine": 1000 * (watched - imported),
        "open": 1000 * (loaded - watched),
        "first picture": 1000 * (first - loaded),
        "second picture": 1000 * (second - first),
        "stages of the first": stages[0],
        "stages of the second": stages[1],
        "parts": {part: {"calls": len(spent), "ms": sum(spent)} for part, spent in sorted(SPENT.items(), key=lambda item: -sum(item[1]))},
    }


def start(folder: Path, batch: int) -> dict[str, Any]:
    """A new process; its report. It may keep bytecode, as an installed package does: compiling all modules anew takes half a second."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, __file__, "--child", "--bundle", str(folder), "--batch", str(batch), "--spawned", repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"the start failed:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def table(reports: list[dict[str, Any]]) -> str:
    """One column per start."""
    lines = []
    for name, value in reports[-1].items():
        if not isinstance(value, dict):
            lines.append((name, [report[name] for report in reports]))
    for part in dict.fromkeys(part for report in reports for part in report["parts"]):
        found = [report["parts"].get(part, {"calls": 0, "ms": 0.0}) for report in reports]
        lines.append((f"  {part} ({found[-1]['calls']}x)", [each["ms"] for each in found]))
    return "\n".join(f"{name:55}" + "".join(f"{value:10.1f}" for value in values) for name, values in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, choices=(512, 1024), default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(draw(asked.bundle, asked.batch, asked.spawned)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.bundle or Path(temporary) / "bundle"
        if not folder.exists():
            from random_bundle import HART_512, HART_1024, RELEASED, make_bundle

            make_bundle(folder, {512: HART_512, 1024: HART_1024}[asked.side], RELEASED)
        reports = [start(folder, asked.batch) for _ in range(asked.starts)]
    print(table(reports))
    if asked.json:
        asked.json.write_text(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
