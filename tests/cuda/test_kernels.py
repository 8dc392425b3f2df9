"""Launches: how arguments are laid out, what is compiled together, loaded when, and refused."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import Double, FakeCache

from hart_edge.plugins import Kernel, Launch, Pointer
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.errors import GpuError, KernelError
from hart_edge.runtime.kernel_cache import KernelCache
from hart_edge.runtime.kernels import KernelLibrary, expressions_of, pack
from hart_edge.runtime.nvrtc import Compiler


def launch_of(name: str, source: str = "a.cuh") -> Launch:
    return Launch(Kernel(source, name), (1, 1, 1), (32, 1, 1), 0, ())


SOURCES = {"a.cuh": "a", "b.cuh": "b"}
KERNELS = (Kernel("a.cuh", "two"), Kernel("a.cuh", "one"), Kernel("b.cuh", "three"), Kernel("a.cuh", "new", 120))


def library(device: Device, cache: FakeCache) -> KernelLibrary:
    return KernelLibrary(device, SOURCES, KERNELS, cache)  # type: ignore[arg-type]


def test_arguments_are_laid_out_as_c_does() -> None:
    class Parameters(ctypes.Structure):
        _fields_ = [
            ("a", ctypes.c_void_p),
            ("b", ctypes.c_int32),
            ("c", ctypes.c_int64),
            ("d", ctypes.c_float),
            ("e", ctypes.c_void_p),
            ("f", ctypes.c_uint64),
            ("g", ctypes.c_int32),
        ]

    values = (0x7F00_0000_0010, -3, -(2**40), 1.5, 0, 2**63 + 1, 9)
    kinds = (Pointer, np.int32, np.int64, np.float32, Pointer, np.uint64, np.int32)
    packed = pack(kind(value) for kind, value in zip(kinds, values, strict=True))
    structure = bytes(Parameters(*values))
    assert len(packed) == Parameters.g.offset + 4
    assert packed == structure[: len(packed)]
    assert pack(()) == b""


@pytest.mark.parametrize("wrong", [3, 1.5, "x", None, np.zeros(1, np.float32), True])
def test_an_argument_without_a_size_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="argument 1 is"):
        pack((np.int32(1), wrong))


def test_a_source_is_compiled_once_with_all_its_kernels_on_first_use(device: Device) -> None:
    cache = FakeCache()
    kernels, stream = library(device, cache), device.stream()
    assert cache.asked == []
    for name in ("one", "two", "one"):
        kernels.launch(launch_of(name), stream)
    assert [(u.name, u.text, u.expressions, c) for u, c in cache.asked] == [("a.cuh", "a", ("one", "two"), 90)]
    kernels.launch(launch_of("three", "b.cuh"), stream)
    assert len(cache.asked) == 2


def test_a_kernel_that_is_not_registered_is_compiled_alone(device: Device) -> None:
    cache = FakeCache()
    kernels = library(device, cache)
    assert kernels.function(Kernel("a.cuh", "extra")).name == "_extra"
    assert cache.asked[0][0].expressions == ("extra",)


def test_a_launch_reaches_the_device_with_its_arguments(double: Double, device: Device) -> None:
    launch = Launch(Kernel("a.cuh", "one"), (5, 2, 1), (64, 1, 1), 1024, (Pointer(0x1000), np.int32(7)))
    library(device, FakeCache()).launch(launch, device.stream())
    calls = double.record.of("cuLaunchKernel") or double.record.of("Function._launch_kernel")
    flat = [n for item in calls[0] for n in (item if isinstance(item, tuple) else (item,))]
    assert len(calls) == 1
    assert [n for n in flat if isinstance(n, int)][:7] == [5, 2, 1, 64, 1, 1, 1024]
    named = double.record.of("cuModuleGetFunction") or double.record.of("Module.get_function")
    assert {str(arguments[-1]).strip("b'") for arguments in named} == {"_one", "_two"}


def test_a_kernel_for_newer_cards_is_refused_by_name(device: Device) -> None:
    with pytest.raises(KernelError, match="new needs compute capability SM120; Test GPU has SM90"):
        library(device, FakeCache()).function(Kernel("a.cuh", "new", 120))
    assert expressions_of(KERNELS, "a.cuh", 120) == ("new", "one", "two")


def test_a_kernel_of_one_architecture_is_left_to_it(device: Device) -> None:
    only = [Kernel("a.cuh", f"only{c}", c, c) for c in (89, 90)]
    assert [expressions_of(only, "a.cuh", c) for c in (86, 89, 90, 100)] == [(), ("only89",), ("only90",), ()]
    cache = FakeCache()
    kernels = KernelLibrary(device, {"a.cuh": "a"}, only, cache)
    kernels.load()
    assert [u.expressions for u, _ in cache.asked] == [("only90",)]
    with pytest.raises(KernelError, match="only89 needs compute capability SM89 and no other; Test GPU has SM90"):
        kernels.function(only[0])


def test_load_brings_in_everything_that_the_device_can_run(device: Device) -> None:
    cache = FakeCache()
    library(device, cache).load()
    assert sorted(u.expressions for u, _ in cache.asked) == [("one", "two"), ("three",)]


def test_closing_unloads_and_a_later_launch_loads_again(double: Double, device: Device) -> None:
    cache = FakeCache()
    kernels = library(device, cache)
    kernels.load()
    kernels.close()
    kernels.close()
    unloaded = double.record.names().count("cuModuleUnload") + double.record.names().count("~Module")
    assert unloaded == 2
    kernels.function(Kernel("a.cuh", "one"))
    assert len(cache.asked) == 3


def test_a_driver_older_than_the_compiler_is_named_with_both_versions(double: Double) -> None:
    double.record.version = 12080
    with Device(host=double.driver) as device:
        with pytest.raises(GpuError, match=r"supports CUDA 12\.8, but the compiler \(NVRTC\) is of CUDA 13\.5") as caught:
            library(device, FakeCache((13, 5)))
        assert "nvidia-cuda-nvrtc-cu12" in caught.value.hint
        library(device, FakeCache((12, 9)))


def test_real_code_is_compiled_and_its_names_are_found(compiler: Compiler, double: Double, tmp_path: Path) -> None:
    double.record.version = compiler.version[0] * 1000
    sources = {"k.cuh": "template <int N> __global__ void k(int* p) { *p = N; }"}
    with Device(host=double.driver) as device:
        kernels = KernelLibrary(device, sources, (Kernel("k.cuh", "k<3>"),), KernelCache(tmp_path, compiler))
        assert kernels.function(Kernel("k.cuh", "k<3>")).name == "_Z1kILi3EEvPi"
    (loaded,) = double.record.of("cuModuleLoadData") or double.record.of("module_from_buffer")
    assert loaded[0][:4] == b"\x7fELF"
