"""Wall-clock time per stage and the peak memory of the process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def _at_once() -> None:
    """There is nothing to wait for."""


class StageTimes:
    """Accumulates seconds per named stage: `with times("decoder"): …`.

    Args:
        wait: called at the end of every stage; returns when all work begun so far is done. By default nothing is waited for.
    """

    def __init__(self, wait: Callable[[], None] = _at_once) -> None:
        self.seconds: dict[str, float] = {}
        self._wait = wait

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
            self._wait()
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the parent's memory from before exec
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
