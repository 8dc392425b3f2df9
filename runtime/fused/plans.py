"""Plans of NVIDIA's libraries, measured once and kept on disk: which of a library's candidates is the fastest on this card.

A heuristic's first choice is often not the fastest, and planning takes as long as drawing a picture. Knows nothing of the
libraries: a candidate is a number, a plan some bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..cuda import Device, Event, Stream
from ..disk_cache import DiskCache
from ..errors import EngineError, GpuError, GpuLostError

MAGIC = b"hart-edge plans 1\n"
MARGIN = 0.97
"""A later candidate must take less than this share of the best one's time: differences below are noise."""
HOPELESS = 1.5
"""A candidate whose first timed run takes so many times the best one's is not measured further."""
SHORT = 0.2
"""Milliseconds below which a run is repeated inside the measurement."""
REPEATS, LAUNCHES = 8, 3


class Plans:
    """What was found out about plans on one device.

    Args:
        device, stream: on which candidates are measured.
        folder: of the kept plans; nothing is kept without one.
    """

    def __init__(self, device: Device, stream: Stream, folder: Path | None = None) -> None:
        self._device, self._stream = device, stream
        cost = "the first picture of every start measures them again"
        self._entries = None if folder is None else DiskCache(folder, MAGIC, ("measured plans", cost))

    def find(self, what: str) -> tuple[dict[str, Any], bytes] | None:
        """Facts and bytes kept under that description on a card like this one, or None."""
        return None if self._entries is None else self._entries.read(*self._names(what))

    def keep(self, what: str, facts: dict[str, Any], data: bytes) -> None:
        """Keep a plan. what: describes the work, and the library with its version."""
        if self._entries is not None:
            self._entries.write(*self._names(what), facts, data)

    def fastest(self, candidates: Iterable[int], run: Callable[[int], None]) -> int | None:
        """The candidate that `run` puts on the stream in the least time, an earlier one rather than a hardly faster later one.

        One that the library, the card's memory or a capture refuses is left out; None when all are. Waits for the device.
        """
        best, least = None, math.inf
        for candidate in candidates:
            try:
                time = self._time(candidate, run, least)
            except GpuLostError:
                raise
            except (EngineError, GpuError):
                continue
            if time < MARGIN * least:
                best, least = candidate, time
        return best

    def _time(self, candidate: int, run: Callable[[int], None], least: float) -> float:
        """Milliseconds of one run. Measured in a CUDA graph: putting a short one on the stream takes longer than running it."""
        run(candidate)  # loads its code, which a capture cannot
        with self._device.event() as start, self._device.event() as end:
            once = self._between(start, end, lambda: run(candidate))
            if once > max(HOPELESS * least, SHORT):
                return once
            repeats = REPEATS if once < SHORT else 1

            def several() -> None:
                for _ in range(repeats):
                    run(candidate)

            with self._stream.capture(several) as graph:
                graph.launch(self._stream)
                return min(self._between(start, end, lambda: graph.launch(self._stream)) for _ in range(LAUNCHES)) / repeats

    def _between(self, start: Event, end: Event, work: Callable[[], None]) -> float:
        start.record(self._stream)
        work()
        end.record(self._stream)
        end.synchronize()
        if self._device.lost:
            raise GpuLostError("the GPU was lost while plans were measured.")
        return end.since(start)

    def _names(self, what: str) -> tuple[str, str]:
        """File name and key."""
        info = self._device.info
        parts = [MAGIC.decode(), info.name, info.capability, info.memory, info.driver_version, what]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return f"{key[:32]}.bin", key
