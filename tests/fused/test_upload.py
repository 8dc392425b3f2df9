"""Weights through page-locked memory: every layout arrives whole, in chunks smaller than it, and errors arrive too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from emulated_scales import emulated_gpu

from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import GpuError
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.upload import Content, Uploader

CHUNK = 1000
"""Bytes: no multiple of any row."""


def numbers(*shape: int, dtype: Any = np.float16) -> Array:
    return (np.arange(np.prod(shape)) % 1021).astype(dtype).reshape(shape)


def strided(array: Array) -> Array:
    return array.transpose(0, 2, 3, 1)


LAYOUTS: list[Content] = [
    [numbers(3)],
    [numbers(19, 111, dtype=np.float32)],
    [numbers(7, 1)],
    [strided(numbers(11, 5, 3, 3))],
    [numbers(37, 20), numbers(37, 50)],
    [numbers(2, 400), numbers(2, 300), numbers(2, 400)],  # a row alone is longer than a chunk
    [numbers(60), numbers(70), numbers(10)],
    [numbers(1, 2, 5, dtype=np.int64)],
    lambda: strided(numbers(3, 50, 7, 2)),
]


@contextmanager
def uploading(context: FusedContext) -> Iterator[Uploader]:
    with Uploader(context.device, workers=2, chunk=CHUNK) as uploader:
        yield uploader


@pytest.mark.parametrize("kind", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_every_layout_arrives(kind: str, request: pytest.FixtureRequest) -> None:
    context = emulated_gpu(1 << 20) if kind == "emulated" else request.getfixturevalue("gpu_context")
    wanted = [np.ascontiguousarray(np.concatenate(content, axis=-1) if isinstance(content, list) else content()) for content in LAYOUTS]
    blocks = [context.device.buffer(array.nbytes) for array in wanted]
    with uploading(context) as uploader:
        for content, block in zip(LAYOUTS, blocks, strict=True):
            uploader.put(content, block.address)
    for array, block in zip(wanted, blocks, strict=True):
        found = np.empty_like(array)
        block.download(found, context.stream)
        context.stream.synchronize()
        np.testing.assert_array_equal(found, array)
        block.close()


def test_an_error_of_a_copy_is_raised_at_the_end_and_everything_is_closed() -> None:
    context = emulated_gpu(1 << 20)
    closed: list[str] = []
    device: Any = context.device
    made = device.pinned

    def pinned(shape: tuple[int, ...], dtype: Any) -> Any:
        slot = made(shape, dtype)
        slot.close = lambda: closed.append("slot")
        return slot

    def refuse(target: int, array: Array, stream: Any) -> None:
        raise GpuError("copying to the GPU failed.")

    device.pinned = pinned
    vars(device.driver).update(upload=refuse)
    with pytest.raises(GpuError, match="copying to the GPU failed"), Uploader(device, workers=2, chunk=CHUNK) as uploader:
        for _ in range(20):
            uploader.put([numbers(5000)], 4096)
    assert closed == ["slot"] * 2


def test_what_is_waiting_is_given_up_when_the_block_fails() -> None:
    context = emulated_gpu(1 << 20)
    with pytest.raises(KeyError), Uploader(context.device, workers=1, chunk=CHUNK) as uploader:
        uploader.put([numbers(5)], context.device.buffer(10).address)
        raise KeyError
    assert not uploader._all
