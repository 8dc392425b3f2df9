"""Tensors that lie on a device: indexing, what NumPy may not do with them, and the memory they come from."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from host_device import HostDevice, host_memory

from hart_edge.runtime.device_memory import DeviceMemory
from hart_edge.runtime.engine import DeviceTensor
from hart_edge.runtime.errors import GpuMemoryError
from hart_edge.runtime.memory import HOST


def tensor(*shape: int) -> DeviceTensor:
    return DeviceTensor(1000, shape, np.dtype("float16"), None)


@pytest.mark.parametrize(
    ("index", "shape", "offset"),
    [(0, (3, 5), 0), (6, (3, 5), 180), (slice(None, 2), (2, 3, 5), 0), (slice(4, None), (3, 3, 5), 120), (slice(None), (7, 3, 5), 0)],
)
def test_indexing_the_first_axis_keeps_the_memory(index: int | slice, shape: tuple[int, ...], offset: int) -> None:
    part = tensor(7, 3, 5)[index]
    assert (part.shape, part.address, part.dtype, part.base) == (shape, 1000 + offset, np.dtype("float16"), None)
    assert part.nbytes == 2 * int(np.prod(shape))


@pytest.mark.parametrize("index", [7, -1, slice(3, 3), slice(None, None, 2)])
def test_what_is_no_run_of_entries_is_an_index_error(index: int | slice) -> None:
    with pytest.raises(IndexError, match=r"first axis of \[7, 3, 5\]"):
        tensor(7, 3, 5)[index]


def test_numpy_refuses_a_device_tensor() -> None:
    with pytest.raises(TypeError, match="download it first"):
        np.asarray(tensor(2))
    with pytest.raises(TypeError):
        np.zeros(2, np.float16) + tensor(2)
    with pytest.raises(TypeError, match="download it first"):
        np.stack([tensor(2), tensor(2)])


def test_host_memory_is_plain_arrays() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert HOST.upload(array) is array
    assert HOST.download(array) is array
    HOST.write(array[1], np.full(3, 19, np.float32))
    assert array.tolist() == [[0, 1, 2], [19, 19, 19]]
    assert HOST.zeros((2, 3), "float16").dtype == np.float16
    for misuse in (HOST.download, lambda t: HOST.write(t, array)):
        with pytest.raises(TypeError, match="lies on the GPU"):
            misuse(tensor(2))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_device_memory_gives_back_what_went_up(dtype: str) -> None:
    memory, array = host_memory(HostDevice()), np.arange(19 * 7).reshape(19, 7).astype(dtype)
    np.testing.assert_array_equal(memory.download(memory.upload(array)), array)
    np.testing.assert_array_equal(memory.download(memory.upload(array.T)), array.T)
    assert memory.download(array) is array
    assert not memory.download(memory.zeros((19, 7), dtype)).any()


def test_device_memory_writes_and_reads_parts() -> None:
    memory = host_memory(HostDevice())
    whole = memory.zeros((4, 3, 5), "float32")
    memory.write(whole[2][1][3:], np.array([7, 8], np.float32))
    memory.write(whole[0], whole[2])
    got = memory.download(whole)
    assert got[2, 1].tolist() == [0, 0, 0, 7, 8]
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(memory.download(whole[2]), got[2])
    assert np.count_nonzero(got) == 4


def test_device_memory_refuses_what_does_not_fit() -> None:
    memory = host_memory(HostDevice())
    target = memory.empty((2, 3), "float32")
    for source in (np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float16), memory.empty((3, 2), "float32")):
        with pytest.raises(TypeError, match="does not fit"):
            memory.write(target, source)
    with pytest.raises(TypeError, match="does not fit"):
        memory.write(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match="not of this memory"):
        memory.download(tensor(2))


def test_blocks_are_used_again_and_only_when_no_tensor_is_left() -> None:
    device = HostDevice()
    memory = host_memory(device)
    first = memory.empty((19,), "float32")
    part = first[3:]
    del first
    other = memory.empty((19,), "float32")
    assert (device.allocations, other.address == part.address - 12) == (2, False)
    address = other.address
    del other
    assert memory.empty((19,), "float32").address == address
    assert device.allocations == 2


def test_idle_blocks_make_room_before_memory_is_short() -> None:
    device = HostDevice(limit=1000)
    memory = host_memory(device)
    kept = memory.upload(np.full(100, 7, np.uint8))
    for size in (600, 700, 800):
        memory.empty((size,), "uint8")
    gc.collect()
    assert device.used == 900
    assert memory.download(kept).tolist() == [7] * 100
    with pytest.raises(GpuMemoryError):
        memory.empty((901,), "uint8")
    assert (device.used, memory.trim()) == (100, False)


class Keeper:
    """Keeps one tensor for later."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.kept: DeviceTensor | None = memory.empty((100,), "uint8") if memory.may_keep(self.drop) else None

    def drop(self) -> None:
        self.kept = None


def test_what_is_kept_for_later_is_freed_when_memory_is_needed() -> None:
    device = HostDevice(limit=250)
    memory = host_memory(device)
    keeper = Keeper(memory)
    assert keeper.kept is not None
    other = memory.empty((200,), "uint8")  # does not fit beside it
    assert (keeper.kept, device.used, other.nbytes) == (None, 200, 200)
    with pytest.raises(GpuMemoryError):
        memory.empty((100,), "uint8")


def test_memory_keeps_nobody_alive() -> None:
    device = HostDevice()
    memory = host_memory(device)
    keeper = Keeper(memory)
    gone = weakref.ref(keeper)
    del keeper
    assert gone() is None
    assert memory.trim()
    assert device.used == 0


def test_host_memory_keeps_nothing() -> None:
    assert not HOST.may_keep(lambda: None)
