"""A generation under torch's profiler (CUPTI): every kernel and copy of the card with its stage, and every allocation.

CUPTI sees the whole process: our kernels, cuBLASLt, cuDNN and ONNX Runtime, inside CUDA graphs too. Of allocations it reports
those of the CUDA runtime, which these libraries use; ours go through the driver and are counted where they are made.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hart_edge.runtime.cuda import Device
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.timing import StageTimes

GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
ALLOCATING = re.compile(r"^cu(da)?(Malloc|HostAlloc|MemAlloc|MemCreate|MemHostAlloc|MallocHost)")
OUTSIDE = "between stages"


@dataclass(frozen=True)
class Work:
    """One kernel, copy or fill of the card; copies and fills have bytes. Times in milliseconds."""

    kind: str
    name: str
    stage: str
    ms: float
    bytes: int

    @property
    def crosses(self) -> str:
        """ "HtoD" or "DtoH" for a copy between host and card, else nothing."""
        found = re.search(r"HtoD|DtoH", self.name)
        return found.group() if self.kind == "gpu_memcpy" and found else ""


@dataclass(frozen=True)
class Profile:
    """stages: milliseconds from begin to end of every stage. allocations: calls that took memory of the card or pinned some."""

    work: list[Work]
    stages: dict[str, float]
    allocations: list[str]

    def crossings(self, direction: str) -> list[int]:
        """Bytes of every copy in a direction, the largest first."""
        return sorted((work.bytes for work in self.work if work.crosses == direction), reverse=True)

    def top(self, stage: str, count: int = 12) -> list[dict[str, Any]]:
        """What the card did longest in a stage: name, calls, milliseconds, share of all that it did in the stage."""
        spent: dict[str, list[float]] = {}
        for work in self.work:
            if work.stage == stage:
                spent.setdefault(short(work.name), []).append(work.ms)
        whole = sum(map(sum, spent.values())) or 1.0
        rows = [{"name": name, "calls": len(ms), "ms": sum(ms), "share": sum(ms) / whole} for name, ms in spent.items()]
        return sorted(rows, key=lambda row: -float(row["ms"]))[:count]

    def to_json(self) -> dict[str, Any]:
        busy = {stage: sum(work.ms for work in self.work if work.stage == stage) for stage in (*self.stages, OUTSIDE)}
        return {
            "stages": {s: {"ms": self.stages.get(s, 0.0), "busy ms": busy[s], "top": self.top(s)} for s in busy},
            "copies to the card, bytes": self.crossings("HtoD"),
            "copies from the card, bytes": self.crossings("DtoH"),
            "allocations": self.allocations,
        }


class MarkedStages(StageTimes):
    """Marks every stage in the profile, and waits for its work, so that what ran between its ends is its own."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        from torch.profiler import record_function

        with record_function(f"stage {stage}"), super().__call__(stage):
            yield


def profiled(pipe: Pipeline, device: Device, prompts: list[str], seeds: list[int]) -> Profile:
    """Draw once under the profiler."""
    from torch.profiler import ProfilerActivity, profile

    times = MarkedStages(pipe.memory.wait)
    with counted_allocations(device) as own, profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        pipe.generate_batch(prompts, seeds=seeds, times=times)
        device.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return read_trace(events, own)


def read_trace(events: list[dict[str, Any]], own: list[str]) -> Profile:
    """The profile of a trace in Chrome's format, times in microseconds; own: allocations that were counted beside it."""
    whole = [event for event in events if event.get("ph") == "X"]
    marks = [
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]), event["name"].removeprefix("stage "))
        for event in whole
        if event.get("cat") == "user_annotation" and event["name"].startswith("stage ")
    ]
    stages: dict[str, float] = {}
    for start, end, name in marks:
        stages[name] = stages.get(name, 0.0) + (end - start) / 1000

    def stage_at(time: float) -> str:
        return next((name for start, end, name in marks if start <= time <= end), OUTSIDE)

    work = [
        Work(event["cat"], event["name"], stage_at(float(event["ts"])), float(event["dur"]) / 1000, int(event["args"].get("bytes", 0)))
        for event in whole
        if event.get("cat") in GPU_WORK
    ]
    called = [event["name"] for event in whole if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    return Profile(work, stages, [name for name in called if ALLOCATING.match(name)] + own)


@contextmanager
def counted_allocations(device: Device) -> Iterator[list[str]]:
    """Notes every allocation that goes through the runtime's own door to CUDA."""
    noted: list[str] = []
    driver: Any = device.driver
    before = {name: getattr(driver, name) for name in ("allocate", "pin")}

    def noting(name: str, function: Callable[[int], Any]) -> Callable[[int], Any]:
        def call(size: int) -> Any:
            noted.append(f"{name} {size}")
            return function(size)

        return call

    try:
        for name, function in before.items():
            setattr(driver, name, noting(name, function))
        yield noted
    finally:
        for name in before:
            delattr(driver, name)


def short(name: str) -> str:
    """A kernel's name without its parameters."""
    return re.sub(r"\(.*", "", name.removeprefix("void "))[:110]
