"""Weights to the device: several threads copy from the mapped file into page-locked memory, and the card fetches from there.

One pageable copy after the other moves 2 GB a second: the file is read into an array, and the driver copies that once more.
Knows nothing of what it copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from ..cuda import Device, PinnedArray, Stream
from ..engine import Array
from ..errors import GpuLostError

WORKERS = 4
CHUNK = 16 << 20
"""Bytes of a worker's page-locked memory."""


Content = list[Array] | Callable[[], Array]
"""Arrays of one type, side by side along their last axis, or what makes an array."""


def whole(content: Content) -> Array:
    """As one contiguous array."""
    if not isinstance(content, list):
        return np.ascontiguousarray(content())
    return np.ascontiguousarray(content[0] if len(content) == 1 else np.concatenate(content, axis=-1))


class Uploader:
    """Copies to one device until its `with` block ends, which waits for all and raises what went wrong with any."""

    def __init__(self, device: Device, workers: int = WORKERS, chunk: int = CHUNK) -> None:
        self._device, self._chunk = device, chunk
        self._slots: SimpleQueue[tuple[PinnedArray, Stream]] = SimpleQueue()
        self._all = [(device.pinned((chunk,), np.uint8), device.stream()) for _ in range(workers)]
        for slot in self._all:
            self._slots.put(slot)
        self._pool = ThreadPoolExecutor(workers, "upload")
        self._waiting: list[Future[None]] = []

    def put(self, content: Content, address: int) -> None:
        """To a device address; arrays must not change until the end."""
        if not isinstance(content, list):
            self._waiting.append(self._pool.submit(self._copy_whole, content, address))
        elif len(content) > 1 and self._rows(content):
            self._put_rows([array.reshape(-1, array.shape[-1]) for array in content], address)
        elif len(content) == 1 and content[0].flags.c_contiguous:
            for piece, start in self._pieces(content[0]):
                self._waiting.append(self._pool.submit(self._copy, [piece[None]], address + start))
        else:
            self._waiting.append(self._pool.submit(self._copy_whole, content, address))

    def _rows(self, arrays: Sequence[Array]) -> int:
        """Whole rows of all arrays together that a slot holds."""
        return self._chunk // sum(int(array.shape[-1]) * array.itemsize for array in arrays)

    def _put_rows(self, arrays: Sequence[Array], address: int) -> None:
        step, width = self._rows(arrays), sum(array.shape[1] * array.itemsize for array in arrays)
        for start in range(0, arrays[0].shape[0], step):
            rows = [array[start : start + step] for array in arrays]
            self._waiting.append(self._pool.submit(self._copy, rows, address + start * width))

    def _pieces(self, array: Array) -> Iterator[tuple[Array, int]]:
        """Bytes of a contiguous array, a slot's worth at a time, and where they start."""
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, self._chunk):
            yield flat[start : start + self._chunk], start

    def _copy_whole(self, content: Content, address: int) -> None:
        """What must be made or laid out anew first: in a thread, because it takes as long as the rest."""
        for piece, start in self._pieces(whole(content)):
            self._copy([piece[None]], address + start)

    def _copy(self, rows: Sequence[Array], address: int) -> None:
        """[rows, …] of every array, side by side, through a slot that is free."""
        pinned, stream = slot = self._slots.get()
        try:
            stream.synchronize()  # the card has fetched what was in it
            count, widths = rows[0].shape[0], [part.shape[1] for part in rows]
            target = pinned.array[: math.prod((count, sum(widths), rows[0].itemsize))].view(rows[0].dtype).reshape(count, sum(widths))
            end = 0
            for part, width in zip(rows, widths, strict=True):
                target[:, end : end + width] = part
                end += width
            self._device.call("copying to the GPU", self._device.driver.upload, address, target, stream.handle)
        finally:
            self._slots.put(slot)

    def close(self) -> None:
        """Give up what is waiting, and free the page-locked memory. Idempotent."""
        self._pool.shutdown(cancel_futures=True)
        while self._all:
            pinned, stream = self._all.pop()
            with suppress(GpuLostError):
                stream.synchronize()
            pinned.close()
            stream.close()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                for copied in self._waiting:
                    copied.result()
        finally:
            self.close()
