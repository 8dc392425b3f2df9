"""On a real GPU, over both hosts: memory, copies, launches, graphs, errors. The doubles' names against the real PyCUDA."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from doubles import PyCuda

from hart_edge.plugins import Kernel
from hart_edge.runtime.backends import has_driver
from hart_edge.runtime.cuda import Device, DeviceBuffer, Stream, devices
from hart_edge.runtime.drivers import faults
from hart_edge.runtime.drivers.libcuda import LibCuda
from hart_edge.runtime.errors import GpuError, GpuMemoryError, HartError, KernelError
from hart_edge.runtime.kernel_cache import KernelCache
from hart_edge.runtime.kernels import KernelLibrary, pack
from hart_edge.runtime.nvrtc import Compiler

pytestmark = pytest.mark.gpu

HOSTS = ("cuda-python", "pycuda")
SOURCES = {
    "test.cuh": """
// out[i] = in[i] · scale + (offset + step), through shared memory
__global__ void affine(const float* in, int n, long long offset, float scale, float* out, unsigned long long step) {
    extern __shared__ float line[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    line[threadIdx.x] = i < n ? in[i] : 0.0f;
    __syncthreads();
    if (i < n) out[i] = line[threadIdx.x] * scale + float(offset + (long long)step);
}
__global__ void last_byte(int size, unsigned char* out) {
    extern __shared__ unsigned char memory[];
    memory[size - 1] = 42;
    __syncthreads();
    *out = memory[size - 1];
}
__global__ void wait(long long cycles) { long long start = clock64(); while (clock64() - start < cycles) {} }
"""
}


AFFINE, LAST_BYTE, WAIT = KERNELS = tuple(Kernel("test.cuh", name) for name in ("affine", "last_byte", "wait"))


def reason(host: str) -> str:
    """Why this host cannot be tested here, or nothing."""
    try:
        Device(host=host).close()
    except HartError as error:
        return f"needs an NVIDIA GPU of SM75 or newer and the package of the host {host}: {error}"
    return ""


@pytest.fixture(scope="session", params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    if problem := reason(request.param):
        pytest.skip(problem)
    return str(request.param)


@pytest.fixture
def device(host: str) -> Iterator[Device]:
    with Device(host=host) as device:
        yield device


@pytest.fixture(scope="session")
def cache(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> KernelCache:
    return KernelCache(tmp_path_factory.mktemp("kernels"), compiler)


@pytest.fixture
def kernels(device: Device, cache: KernelCache) -> KernelLibrary:
    return KernelLibrary(device, SOURCES, KERNELS, cache)


def test_the_device_is_described(host: str) -> None:
    info = devices(host)[0]
    assert info.name
    assert info.capability >= 75
    assert info.memory > 2**30
    assert info.shared_limit >= 64 * 1024
    assert info.driver_version >= 12000
    with Device(host=host) as device:
        free, total = device.memory()
    assert 0 < free <= total <= info.memory * 1.01


@pytest.mark.parametrize("size", [1, 111, 1 << 20])
def test_arrays_come_back_as_they_were(device: Device, size: int) -> None:
    sent, received = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8), np.zeros(size, np.uint8)
    stream, buffer, copy = device.stream(), device.buffer(size), device.buffer(size)
    buffer.upload(sent, stream)
    copy.copy_from(buffer, stream)
    copy.download(received, stream)
    stream.synchronize()
    np.testing.assert_array_equal(received, sent)


def test_pinned_arrays_and_offsets(device: Device) -> None:
    stream, buffer = device.stream(), device.buffer(64)
    with device.pinned((4, 2), np.float32) as sent, device.pinned((16,), np.float32) as received:
        sent.array[:] = np.arange(8).reshape(4, 2)
        buffer.fill(0, stream)
        buffer.upload(sent.array, stream, offset=16)
        buffer.download(received.array, stream)
        stream.synchronize()
        np.testing.assert_array_equal(received.array, [0] * 4 + list(range(8)) + [0] * 4)


def test_fill_sets_every_byte(device: Device) -> None:
    stream, buffer, array = device.stream(), device.buffer(989), np.zeros(989, np.uint8)
    buffer.fill(200, stream)
    buffer.download(array, stream)
    stream.synchronize()
    assert set(array.tolist()) == {200}


def launch_affine(kernels: KernelLibrary, stream: Stream, source: DeviceBuffer, target: DeviceBuffer, n: int, scale: float = 2) -> None:
    addresses = np.uint64(source.address), np.uint64(target.address)
    offset, step = np.int64(-5 - 2**40), np.uint64(2**40)
    arguments = pack((addresses[0], np.int32(n), offset, np.float32(scale), addresses[1], step))
    kernels.function(AFFINE).launch(stream, ((n + 127) // 128, 1, 1), (128, 1, 1), 512, arguments)


def expected_affine(array: np.ndarray[Any, Any], scale: float = 2.0) -> np.ndarray[Any, Any]:
    return array * np.float32(scale) - np.float32(5)


@pytest.mark.parametrize("n", [1, 111, 989])
def test_a_kernel_gets_all_its_arguments(device: Device, kernels: KernelLibrary, n: int) -> None:
    array, result = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    stream, source, target = device.stream(), device.buffer(4 * n), device.buffer(4 * n)
    source.upload(array, stream)
    launch_affine(kernels, stream, source, target, n)
    target.download(result, stream)
    stream.synchronize()
    np.testing.assert_array_equal(result, expected_affine(array))


def test_a_block_can_have_all_the_shared_memory_of_the_card(device: Device, kernels: KernelLibrary) -> None:
    size, result = device.info.shared_limit, np.zeros(1, np.uint8)
    stream, buffer = device.stream(), device.buffer(1)
    function = kernels.function(LAST_BYTE)
    function.launch(stream, (1, 1, 1), (1, 1, 1), size, pack((np.int32(size), np.uint64(buffer.address))))
    buffer.download(result, stream)
    stream.synchronize()
    assert result[0] == 42
    with pytest.raises(KernelError, match="shared memory"):
        function.launch(stream, (1, 1, 1), (1, 1, 1), size + 1, b"")
    assert 1 <= function.registers <= 255


def test_events_measure_time_and_order_streams(device: Device, kernels: KernelLibrary) -> None:
    first, second, start, end = device.stream(), device.stream(), device.event(), device.event()
    function = kernels.function(WAIT)
    result, buffer = np.zeros(4, np.uint8), device.buffer(4)
    buffer.fill(1, first)
    first.synchronize()
    start.record(first)
    function.launch(first, (1, 1, 1), (1, 1, 1), 0, pack((np.int64(20_000_000),)))
    buffer.fill(9, first)
    end.record(first)
    second.wait(end)
    buffer.download(result, second)
    second.synchronize()
    assert result.tolist() == [9] * 4
    end.synchronize()
    assert 2 < end.since(start) < 1000  # 20 million cycles at 0.1 to 2.5 GHz
    assert first.address != second.address != 0


def test_a_graph_runs_what_was_captured_as_often_as_it_is_launched(device: Device, kernels: KernelLibrary) -> None:
    n = 256
    stream, source, target = device.stream(), device.buffer(4 * n), device.buffer(4 * n)
    kernels.load()

    def record() -> None:
        launch_affine(kernels, stream, source, target, n)
        source.copy_from(target, stream)

    array, result = np.ones(n, np.float32), np.zeros(n, np.float32)
    with stream.capture(record) as graph:
        source.upload(array, stream)
        source.download(result, stream)
        stream.synchronize()
        np.testing.assert_array_equal(result, array)  # capturing ran nothing
        for _ in range(3):
            graph.launch(stream)
            array = expected_affine(array)
        source.download(result, stream)
        stream.synchronize()
    np.testing.assert_array_equal(result, array)


def test_a_failed_capture_leaves_the_stream_usable(device: Device) -> None:
    stream, buffer, array = device.stream(), device.buffer(16), np.zeros(16, np.uint8)

    def fail() -> None:
        buffer.fill(1, stream)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream.capture(fail)
    with pytest.raises(GpuError, match=r"waiting for a stream failed .*CAPTURE"):
        stream.capture(stream.synchronize)
    buffer.fill(3, stream)
    buffer.download(array, stream)
    stream.synchronize()
    assert array.tolist() == [3] * 16


def test_too_large_a_buffer_is_refused_with_figures_and_the_device_works_on(device: Device) -> None:
    with pytest.raises(GpuMemoryError, match=r"allocating [\d,.]+ MiB on .* GiB of [\d.]+ GiB are free"):
        device.buffer(4 * device.info.memory)
    assert not device.lost
    device.buffer(1 << 20).close()


def test_code_that_is_none_is_refused(device: Device) -> None:
    with pytest.raises(GpuError, match="loading kernels failed"):
        device.module(b"this is not machine code" * 10)


def test_a_missing_kernel_is_named(device: Device, kernels: KernelLibrary) -> None:
    kernels.load()
    with pytest.raises(GpuError, match=r"finding the kernel absent failed .*NOT_FOUND"):
        kernels._modules[0].function("absent")


def test_memory_is_given_back(host: str, cache: KernelCache) -> None:
    with Device(host=host) as watcher:
        with Device(host=host) as warm:
            KernelLibrary(warm, SOURCES, KERNELS, cache).load()
        before, _ = watcher.memory()
        for _ in range(3):
            with Device(host=host) as device:
                device.buffer(256 << 20)
                device.pinned((1 << 20,), np.uint8)
                KernelLibrary(device, SOURCES, KERNELS, cache).load()
                device.stream()
                device.event()
        after, _ = watcher.memory()
    assert before - after < 64 << 20


def test_several_threads_share_a_device(device: Device, kernels: KernelLibrary) -> None:
    results: dict[int, np.ndarray[Any, Any]] = {}

    def work(index: int) -> None:
        array, result = np.full(500, index, np.float32), np.zeros(500, np.float32)
        with device.stream() as stream, device.buffer(2000) as source, device.buffer(2000) as target:
            for _ in range(20):
                source.upload(array, stream)
                launch_affine(kernels, stream, source, target, 500, scale=index)
                target.download(result, stream)
                stream.synchronize()
        results[index] = result

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        np.testing.assert_array_equal(results[index], expected_affine(np.full(500, index, np.float32), index))


def test_a_device_may_be_closed_by_another_thread(host: str) -> None:
    device = Device(host=host)
    device.stream()
    device.buffer(16)
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()
    with pytest.raises(GpuError, match="closed"):
        device.synchronize()
    with Device(host=host) as again:
        again.synchronize()


def test_both_hosts_use_the_primary_context(host: str) -> None:
    """What one host allocates, the other reads: they share the context, as they do with ONNX Runtime."""
    other = HOSTS[1 - HOSTS.index(host)]
    if problem := reason(other):
        pytest.skip(problem)
    array = np.zeros(16, np.uint8)
    with Device(host=host) as mine, Device(host=other) as theirs:
        stream, foreign = mine.stream(), theirs.stream()
        buffer, target = mine.buffer(16), theirs.buffer(16)
        buffer.fill(77, stream)
        stream.synchronize()
        with theirs.active():
            theirs.driver.copy(target.address, buffer.address, 16, foreign.handle)
        target.download(array, foreign)
        foreign.synchronize()
    assert array.tolist() == [77] * 16


def test_an_illegal_address_loses_the_gpu_and_not_the_process(host: str, cache: KernelCache) -> None:
    """In a process of its own, because its context is beyond repair afterwards."""
    code = f"""
        import sys
        from pathlib import Path
        import numpy as np
        from hart_edge.runtime.cuda import Device
        from hart_edge.runtime.errors import GpuLostError
        from hart_edge.runtime.kernel_cache import KernelCache
        from hart_edge.runtime.kernels import pack
        from hart_edge.runtime.nvrtc import unit

        with Device(host={host!r}) as device:
            stream, buffer = device.stream(), device.buffer(16)
            source = {{"bad.cuh": "__global__ void bad(int* p) {{ *p = 1; }}"}}
            compiled = KernelCache(Path({str(cache.folder)!r})).get(unit("bad.cuh", source, ("bad",)), device.info.capability)
            function = device.module(compiled.cubin).function(compiled.names["bad"])
            function.launch(stream, (1, 1, 1), (1, 1, 1), 0, pack((np.uint64(64),)))
            for _ in range(2):
                try:
                    stream.synchronize()
                except GpuLostError as error:
                    print("lost:", error)
            assert device.lost
        print("still here")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lost: the GPU was lost while waiting for a stream") == 2
    assert "illegal memory access" in done.stdout
    assert done.stdout.endswith("still here\n")


def test_the_statuses_that_are_told_apart_are_known_to_the_driver() -> None:
    """By their descriptions too, which are all that PyCUDA tells: an invalid image and an invalid source have the same one."""
    if not has_driver():
        pytest.skip("needs an NVIDIA driver")
    known = set(LibCuda().names().values())
    assert known >= faults.LOST | {"CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_NO_DEVICE"}
    assert known >= faults.WRONG_BINARY - {"CUDA_ERROR_INVALID_SOURCE"}


def test_the_real_pycuda_has_everything_that_the_host_uses() -> None:
    if problem := reason("pycuda"):
        pytest.skip(problem)
    api = importlib.import_module("pycuda.driver")
    double = PyCuda()
    functions = [name for name in vars(double) if name[0].islower() and callable(getattr(double, name)) and name != "refused"]
    uses = {
        api: [*functions, "Error", "Device", "Context", "Stream", "Event"],
        api.Device: ["count", "name", "total_memory", "compute_capability", "get_attribute", "retain_primary_context"],
        api.Context: ["push", "pop", "detach", "synchronize"],
        api.Stream: ["synchronize", "wait_for_event", "handle"],
        api.Event: ["record", "synchronize", "time_since"],
        api.Module: ["get_function"],
        api.Function: ["get_attribute", "set_attribute", "_launch_kernel"],
        api.DeviceAllocation: ["free", "__int__"],
        api.PagelockedHostAllocation: ["free"],
        api.device_attribute: ["MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"],
        api.function_attribute: ["NUM_REGS", "MAX_DYNAMIC_SHARED_SIZE_BYTES"],
    }
    assert len(functions) >= 10
    assert [(owner.__name__, name) for owner, names in uses.items() for name in names if not hasattr(owner, name)] == []
