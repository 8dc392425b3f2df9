"""Devices and what lives on them, over doubles of both hosts: lifetimes, order of closing, checks, errors."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import Any

import numpy as np
import pytest
from doubles import FREE, TOTAL, Bindings, Double, Library, PyCuda

from hart_edge.runtime.cuda import Device, devices
from hart_edge.runtime.drivers.libcuda import LibCuda
from hart_edge.runtime.drivers.pycuda import PyCuda as Host
from hart_edge.runtime.errors import GpuError, GpuLostError, GpuMemoryError, InputError, KernelError

ILLEGAL_ADDRESS, OUT_OF_MEMORY, NO_BINARY, MISMATCH, INVALIDATED = 700, 2, 209, 803, 901


def test_facts_about_the_device(double: Double) -> None:
    (info,) = devices(double.driver)
    assert (info.index, info.name, info.capability, info.memory) == (0, "Test GPU", 90, TOTAL)
    assert (info.shared_limit, info.driver_version) == (100_000, 13000)
    with Device(host=double.driver) as device:
        assert device.info == info
        assert device.memory() == (FREE, TOTAL)


def test_everything_is_closed_with_its_device_newest_first_and_with_the_context_current(double: Double) -> None:
    with Device(host=double.driver) as device:
        stream = device.stream()
        device.event().record(stream)
        device.buffer(16)
        device.pinned((2, 3), np.float32)
        device.module(b"cubin").function("kernel")
        del stream
        double.record.calls.clear()
    gc.collect()
    names = double.record.names()
    if isinstance(double.record, Bindings):
        order = ["cuModuleUnload", "cuMemFreeHost", "cuMemFree", "cuEventDestroy", "cuStreamDestroy", "cuDevicePrimaryCtxRelease"]
    else:
        order = ["~Function", "~Module", "Pagelocked.free", "DeviceAllocation.free", "~Event", "~Stream", "Context.detach"]
    assert [name for name in names if name in order] == order
    assert double.record.depth == 0
    assert double.record.stray == []


def test_closing_twice_frees_once(double: Double, device: Device) -> None:
    buffer = device.buffer(16)
    buffer.close()
    buffer.close()
    device.close()
    device.close()
    frees = double.record.of("cuMemFree") + double.record.of("DeviceAllocation.free")
    assert len(frees) == 1
    assert len(double.record.of("cuDevicePrimaryCtxRelease") + double.record.of("Context.detach")) == 1


def test_a_context_is_pushed_once_for_a_block_and_popped_after_an_error(double: Double, device: Device) -> None:
    with pytest.raises(ZeroDivisionError), device.active():
        device.stream()
        device.synchronize()
        _ = 1 / 0
    names = [name for name in double.record.names() if "Push" in name or "push" in name]
    assert len(names) == 1
    assert double.record.depth == 0


def test_another_thread_may_use_the_device(double: Double, device: Device) -> None:
    with device.active():
        thread = threading.Thread(target=device.synchronize)
        thread.start()
        thread.join()
    pushes = [name for name in double.record.names() if name in ("cuCtxPushCurrent", "Context.push")]
    assert len(pushes) == 2  # a current context belongs to its thread
    assert double.record.stray == []


def test_use_after_closing_is_an_error(device: Device) -> None:
    stream, buffer, module = device.stream(), device.buffer(16), device.module(b"")
    function = module.function("kernel")
    for resource in (stream, buffer, module):
        resource.close()
    with pytest.raises(GpuError, match="Stream was used after it was closed"):
        stream.synchronize()
    with pytest.raises(GpuError, match="closed"), device.stream() as other:
        buffer.fill(0, other)
    with pytest.raises(GpuError, match="module was closed"):
        _ = function.registers
    device.close()
    with pytest.raises(GpuError, match="Test GPU was used after it was closed"):
        device.stream()


def test_out_of_memory_names_what_was_asked_for_and_what_is_free(double: Double, device: Device) -> None:
    double.refuse("cuMemAlloc", "mem_alloc", OUT_OF_MEMORY)
    with pytest.raises(GpuMemoryError) as caught:
        device.buffer(3 << 30)
    assert "allocating 3,072.0 MiB on Test GPU" in str(caught.value)
    assert "1.00 GiB of 8.00 GiB are free" in str(caught.value)
    assert "smaller batch" in caught.value.hint
    assert not device.lost
    assert double.record.depth == 0


def test_a_lost_gpu_says_how_to_go_on_and_closes_quietly(double: Double) -> None:
    device = Device(host=double.driver)
    stream, _ = device.stream(), device.buffer(16)
    double.refuse("cuStreamSynchronize", "Stream.synchronize", ILLEGAL_ADDRESS)
    with pytest.raises(GpuLostError, match="illegal memory access") as caught:
        stream.synchronize()
    assert "restart the process" in caught.value.hint
    assert device.lost
    double.refuse("cuMemFree", "DeviceAllocation.free", ILLEGAL_ADDRESS)
    device.close()
    assert double.record.depth == 0


@pytest.mark.parametrize(
    ("status", "said"), [(NO_BINARY, "does not fit this GPU"), (MISMATCH, "driver does not fit"), (INVALIDATED, "report")]
)
def test_other_statuses(double: Double, device: Device, status: int, said: str) -> None:
    double.refuse("cuModuleLoadData", "module_from_buffer", status)
    with pytest.raises(GpuError, match=said):
        device.module(b"cubin")


def test_no_device_an_old_device_and_a_wrong_index(double: Double) -> None:
    with pytest.raises(GpuError, match="no GPU 1; there are: 0 Test GPU"):
        Device(1, double.driver)
    double.record.capability = 70
    with pytest.raises(GpuError, match="SM70; expected SM75"):
        Device(host=double.driver)
    double.record.devices = 0
    with pytest.raises(GpuError, match="sees no GPU"):
        Device(host=double.driver)


def test_copies_and_fills_reach_the_host(double: Double, device: Device) -> None:
    stream, buffer, other = device.stream(), device.buffer(64), device.buffer(32)
    array = np.arange(4, dtype=np.float32)
    buffer.upload(array, stream, offset=16)
    buffer.download(array, stream, offset=8)
    buffer.copy_from(other, stream)
    buffer.fill(7, stream)
    start = 0x10000
    if isinstance(double.record, Bindings):
        assert double.record.of("cuMemcpyHtoDAsync")[0][:3] == (start + 16, array.ctypes.data, 16)
        assert double.record.of("cuMemcpyDtoHAsync")[0][:3] == (array.ctypes.data, start + 8, 16)
        assert double.record.of("cuMemcpyDtoDAsync")[0][:3] == (start, start, 32)
        assert double.record.of("cuMemsetD8Async")[0][:3] == (start, 7, 64)
    else:
        assert double.record.of("memcpy_htod_async")[0][:2] == (start + 16, array)
        assert double.record.of("memcpy_dtoh_async")[0][:2] == (array, start + 8)
        assert double.record.of("memcpy_dtod_async")[0][:3] == (start, start, 32)
        assert double.record.of("memset_d8_async")[0][:3] == (start, 7, 64)


def test_pycuda_gets_large_transfers_in_pieces() -> None:
    """It takes these sizes as 32-bit numbers."""
    module = PyCuda()
    module.depth = 1
    Host(module, LibCuda(Library(module))).fill(1000, 5, 2**32 + 10, None)
    pieces = [(target - 1000, size) for target, _, size, _ in module.of("memset_d8_async")]
    assert pieces == [(0, 2**31), (2**31, 2**31), (2**32, 10)]


def test_what_does_not_fit_a_buffer_is_refused(device: Device) -> None:
    stream, buffer = device.stream(), device.buffer(16)
    with pytest.raises(InputError, match="20 bytes at 0 are not inside a buffer of 16"):
        buffer.upload(np.zeros(5, np.float32), stream)
    with pytest.raises(InputError, match="16 bytes at 4"):
        buffer.download(np.zeros(4, np.float32), stream, offset=4)
    with pytest.raises(InputError, match="not contiguous"):
        buffer.upload(np.zeros((4, 4), np.int8)[:, ::2], stream)
    with pytest.raises(InputError, match="at least 1"):
        device.buffer(0)
    with pytest.raises(InputError, match="at least one element"):
        device.pinned((0, 3), np.int8)


def test_a_pinned_array_is_writable_and_has_its_shape(device: Device) -> None:
    with device.pinned((3, 5), np.float16) as pinned:
        pinned.array[:] = 2
        assert pinned.array.shape == (3, 5)
        assert pinned.array.dtype == np.float16
        assert pinned.array.sum() == 30


def test_a_launch_passes_grid_block_and_arguments(double: Double, device: Device) -> None:
    stream, function = device.stream(), device.module(b"").function("kernel")
    packed = bytes(range(24))
    received: list[bytes] = []
    if isinstance(double.record, Bindings):
        _read_extra(double.record, received)
    function.launch(stream, (3, 2, 1), (64, 1, 1), 512, packed)
    if isinstance(double.record, Bindings):
        arguments = double.record.of("cuLaunchKernel")[0]
        assert arguments[1:8] == (3, 2, 1, 64, 1, 1, 512)
        assert received == [packed]
    else:
        (arguments,) = double.record.of("Function._launch_kernel")
        assert arguments[:4] == ((3, 2, 1), (64, 1, 1), packed, 512)


def _read_extra(record: Bindings, received: list[bytes]) -> None:
    """Read the launch's argument buffer as the driver would, while it is alive."""
    answer = record._answer

    def reading(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name == "cuLaunchKernel":
            extra = (ctypes.c_void_p * 5).from_address(arguments[-1])
            assert (extra[0], extra[2], extra[4]) == (1, 2, None)
            received.append(ctypes.string_at(extra[1], ctypes.c_size_t.from_address(extra[3]).value))
        return answer(name, arguments)

    record._answer = reading  # type: ignore[method-assign]


def test_more_shared_memory_is_asked_for_once_and_only_up_to_the_cards_limit(double: Double, device: Device) -> None:
    stream, function = device.stream(), device.module(b"").function("kernel")
    for shared in (48 * 1024, 60_000, 60_000, 50_000, 70_000):
        function.launch(stream, (1, 1, 1), (1, 1, 1), shared, b"")
    asked = [arguments[-1] for arguments in double.record.of("cuFuncSetAttribute") + double.record.of("Function.set_attribute")]
    assert asked == [60_000, 70_000]
    with pytest.raises(KernelError, match="kernel needs 100001 bytes of shared memory a block; Test GPU has 100000"):
        function.launch(stream, (1, 1, 1), (1, 1, 1), 100_001, b"")


def test_a_graph_is_captured_instantiated_launched_and_freed(double: Double, device: Device) -> None:
    stream = device.stream()
    with stream.capture(lambda: double.record.note("recorded")) as graph:
        graph.launch(stream)
    wanted = ["recorded", "cuStreamEndCapture", "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy"]
    assert [name for name in double.record.names() if name in wanted] == wanted
    assert any(name.startswith("cuStreamBeginCapture") for name in double.record.names())
    assert any(name.startswith("cuGraphInstantiate") for name in double.record.names())


def test_a_failed_capture_leaves_capture_mode_and_frees_what_was_captured(double: Double, device: Device) -> None:
    stream = device.stream()

    def record() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream.capture(record)
    assert double.record.names()[-3:-1] == ["cuStreamEndCapture", "cuGraphDestroy"]
    double.refuse("cuStreamEndCapture", "cuStreamEndCapture", INVALIDATED)
    with pytest.raises(GpuError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        stream.capture(lambda: None)
    double.refuse("cuGraphInstantiate", "cuGraphInstantiateWithFlags", OUT_OF_MEMORY)
    destroyed = len(double.record.of("cuGraphDestroy"))
    with pytest.raises(GpuMemoryError, match="making a graph"):
        stream.capture(lambda: None)
    assert len(double.record.of("cuGraphDestroy")) == destroyed + 1


def test_events_measure_and_order(double: Double, device: Device) -> None:
    stream, start, end = device.stream(), device.event(), device.event()
    start.record(stream)
    end.record(stream)
    stream.wait(end)
    end.synchronize()
    assert end.since(start) == 1.5
    assert stream.address == 0x51
    elapsed = double.record.of("cuEventElapsedTime") or [(None, None)]
    if isinstance(double.record, Bindings):
        assert elapsed[0] == (start.handle, end.handle)
    else:
        assert double.record.of("Event.time_since") == [(start.handle,)]


def test_registers(device: Device) -> None:
    assert device.module(b"").function("kernel").registers == 40


def test_a_stream_of_another_library_is_used_and_left_alone(double: Double, device: Device) -> None:
    if isinstance(double.record, PyCuda):
        with pytest.raises(GpuError, match="taking a stream"):
            device.stream_at(0xABC)
        return
    stream = device.stream_at(0xABC)
    assert stream.address == 0xABC
    stream.synchronize()
    stream.close()
    called = [name for name, *_ in double.record.calls]
    assert "cuStreamSynchronize" in called and "cuStreamDestroy" not in called
