"""Device memory that a process takes, seen from outside its libraries: by how much the driver's free memory shrinks.

Contenders of a measurement take turns, so that what goes missing during a turn is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from .backends import CPU, has_driver
from .cuda import Device
from .errors import GpuError, MissingPackageError

WATCHED = 3
"""Turns that are watched: loading and the warm-ups. Counted runs allocate nothing new and are not disturbed."""
INTERVAL = 0.002
"""Seconds between two looks."""


class DeviceWatch:
    """Peak of one process.

    Args:
        free: free bytes of the device, callable from any thread; None without a device.
    """

    def __init__(self, free: Callable[[], int] | None) -> None:
        self._free = free
        self._turns = self._held = self._peak = 0

    def peak(self) -> int:
        """Most bytes so far, without the driver's context, which is there before the first turn."""
        return self._peak

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A block in which no other process allocates."""
        self._turns += 1
        if self._free is None or self._turns > WATCHED:
            yield
            return
        before, done = self._free(), Event()
        watcher = Thread(target=self._look, args=(self._free, before, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._held += before - self._free()

    def _look(self, free: Callable[[], int], before: int, done: Event) -> None:
        with suppress(GpuError):  # the device is lost: the turn itself says so
            while True:
                last = done.wait(INTERVAL)
                self._peak = max(self._peak, self._held + before - free())
                if last:
                    return


def open_watch(backend: str) -> DeviceWatch:
    """Watches the first GPU, whose context it opens; watches nothing for the CPU or where there is no GPU that works."""
    if backend == CPU or not has_driver():
        return DeviceWatch(None)
    try:
        device = Device()
    except (GpuError, MissingPackageError):
        return DeviceWatch(None)
    return DeviceWatch(lambda: device.memory()[0])
