"""Recording doubles of the two CUDA packages: no GPU, but the names and the arguments that the real ones take.

`Bindings` binds every call to the signature of the real `cuda.bindings.driver`, so a function that is renamed or takes
other arguments fails a test. `PyCuda` cannot do that without PyCUDA; test_cuda_gpu.py compares its names with the real
module. Both keep track of which context is current, and note what is destroyed without one.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from hart_edge.runtime.drivers import Driver
from hart_edge.runtime.nvrtc import Compiled, Unit

FREE, TOTAL = 1 << 30, 8 << 30
DESCRIPTIONS = {
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    100: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    200: ("CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"),
    209: ("CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"),
    300: ("CUDA_ERROR_INVALID_SOURCE", "device kernel image is invalid"),
    700: ("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    803: ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"),
    901: ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"),
}
"""Names and descriptions of some statuses, as the driver has them."""


class Recorder:
    """What both doubles share.

    Attributes:
        calls: (name, arguments) in order.
        refused: status by the name of the call that is refused.
        depth: contexts pushed and not popped.
        capability, version, devices: of the device and the driver that are pretended.
        stray: what was called or destroyed with no context current.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.refused: dict[str, int] = {}
        self.depth = 0
        self.capability = 90
        self.version = 13000
        self.devices = 1
        self.stray: list[str] = []

    def note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]

    def needs_context(self, name: str) -> None:
        if self.depth < 1:
            self.stray.append(name)


CONTEXT_FREE = ("cuInit", "cuDriver", "cuDevice", "cuCtxP", "cuGetError")


class Bindings(Recorder):
    """`cuda.bindings.driver`."""

    def __init__(self) -> None:
        super().__init__()
        self._real = importlib.import_module("cuda.bindings.driver")
        self._pinned: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not (name.startswith("cu") and name[2].isupper()):
            return real

        def function(*arguments: Any) -> tuple[Any, ...]:
            inspect.signature(real).bind(*arguments)
            return self._answer(name, arguments)

        function.__name__ = name
        return function

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name == "cuGetErrorString":
            return self._real.CUresult.CUDA_SUCCESS, DESCRIPTIONS[int(arguments[0])][1].encode()
        self.note(name, *arguments)
        if not name.startswith(CONTEXT_FREE):
            self.needs_context(name)
        if name in self.refused:
            return (self._real.CUresult(self.refused[name]),)
        self.depth += {"cuCtxPushCurrent": 1, "cuCtxPopCurrent": -1}.get(name, 0)
        return self._real.CUresult.CUDA_SUCCESS, *self._results(name, arguments)

    def _results(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        real = self._real
        if name == "cuDeviceGetAttribute":
            attribute = arguments[0].name
            major, minor = divmod(self.capability, 10)
            return (major if attribute.endswith("MAJOR") else minor if attribute.endswith("MINOR") else 100_000,)
        if name == "cuMemHostAlloc":
            self._pinned.append(ctypes.create_string_buffer(arguments[0]))
            return (ctypes.addressof(self._pinned[-1]),)
        fixed = {
            "cuDriverGetVersion": self.version,
            "cuDeviceGetCount": self.devices,
            "cuDeviceGetName": b"Test GPU" + bytes(248),
            "cuDeviceTotalMem": TOTAL,
            "cuDevicePrimaryCtxRetain": real.CUcontext(1),
            "cuCtxPopCurrent": real.CUcontext(1),
            "cuMemAlloc": real.CUdeviceptr(0x10000),
            "cuStreamCreate": real.CUstream(0x51),
            "cuEventCreate": real.CUevent(0xE1),
            "cuEventElapsedTime": 1.5,
            "cuModuleLoadData": real.CUmodule(0x3D),
            "cuModuleGetFunction": real.CUfunction(0xF1),
            "cuFuncGetAttribute": 40,
            "cuStreamEndCapture": real.CUgraph(0xC1),
            "cuGraphInstantiate": real.CUgraphExec(0xC2),
        }
        if name == "cuMemGetInfo":
            return FREE, TOTAL
        return (fixed[name],) if name in fixed else ()


class PyCuda(Recorder):
    """`pycuda.driver`: functions, and objects that are destroyed with their last reference."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.device_attribute = SimpleNamespace(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="optin")
        self.function_attribute = SimpleNamespace(NUM_REGS="registers", MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")
        self.Context = SimpleNamespace(pop=self._made("Context.pop"), synchronize=self._made("Context.synchronize"))
        self.Device = self._device_class()
        for name in ("memcpy_htod_async", "memcpy_dtoh_async", "memcpy_dtod_async", "memset_d8_async"):
            setattr(self, name, self._made(name))
        self.init = self._made("init")
        self.get_driver_version = self._made("get_driver_version", lambda: self.version)
        self.mem_get_info = self._made("mem_get_info", lambda: (FREE, TOTAL))
        self.mem_alloc = self._made("mem_alloc", lambda size: Allocation(self))
        self.pagelocked_empty = self._made("pagelocked_empty", self._pagelocked)
        self.Stream = self._made("Stream", lambda flags: Thing(self, "Stream", "synchronize", "wait_for_event", handle=0x51))
        self.Event = self._made("Event", lambda: Thing(self, "Event", "record", "synchronize", "time_since", time_since=1.5))
        self.module_from_buffer = self._made("module_from_buffer", lambda cubin: Thing(self, "Module", "get_function"))

    def _made(self, name: str, result: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            self.note(name, *arguments)
            if not name.startswith(("init", "get_driver", "Device", "Context.push", "Context.pop", "Context.detach")):
                self.needs_context(name)
            if name in self.refused:
                raise self.Error(f"cuSomething failed: {DESCRIPTIONS[self.refused[name]][1]}")
            self.depth += {"Context.push": 1, "Context.pop": -1}.get(name, 0)
            return result(*arguments) if result else None

        return function

    def _device_class(self) -> Any:
        def make(index: int) -> Any:
            context = SimpleNamespace(push=self._made("Context.push"), detach=self._made("Context.detach"))
            return SimpleNamespace(
                name=self._made("Device.name", lambda: "Test GPU"),
                total_memory=self._made("Device.total_memory", lambda: TOTAL),
                compute_capability=self._made("Device.compute_capability", lambda: divmod(self.capability, 10)),
                get_attribute=self._made("Device.get_attribute", lambda attribute: 100_000),
                retain_primary_context=self._made("Device.retain_primary_context", lambda: context),
            )

        make.count = self._made("Device.count", lambda: self.devices)  # type: ignore[attr-defined]
        return make

    def _pagelocked(self, shape: tuple[int, ...], dtype: Any) -> Any:
        class Pinned(np.ndarray[Any, Any]):
            base = SimpleNamespace(free=self._made("Pagelocked.free"))  # type: ignore[assignment]

        return np.zeros(shape, dtype).view(Pinned)


class Thing:
    """An object of PyCUDA's: methods that are recorded, attributes that are fixed, and a destructor that is noted."""

    def __init__(self, owner: PyCuda, kind: str, *methods: str, **fixed: Any) -> None:
        self._owner, self._kind = owner, kind
        for method in methods:
            result = fixed.pop(method, None)
            setattr(self, method, owner._made(f"{kind}.{method}", lambda *a, result=result: result))
        if kind == "Module":
            module = weakref.ref(self)  # as in PyCUDA, no cycle: the last reference destroys
            self.get_function = owner._made("Module.get_function", lambda name: module()._function())  # type: ignore[union-attr]
        for name, value in fixed.items():
            setattr(self, name, value)

    def _function(self) -> Thing:
        function = Thing(self._owner, "Function", "_launch_kernel", "get_attribute", "set_attribute", get_attribute=40)
        function.module = self  # type: ignore[attr-defined]  # PyCUDA keeps the module alive, too
        return function

    def __del__(self) -> None:
        self._owner.note(f"~{self._kind}")
        if self._kind != "Function":
            self._owner.needs_context(f"~{self._kind}")


class Allocation:
    """PyCUDA's DeviceAllocation."""

    def __init__(self, owner: PyCuda) -> None:
        self.free = owner._made("DeviceAllocation.free")

    def __int__(self) -> int:
        return 0x10000


class Library:
    """libcuda, as ctypes sees it, for graphs and names of errors."""

    def __init__(self, owner: PyCuda) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name in ("cuGetErrorName", "cuGetErrorString"):
            return lambda status, text: self._say(name == "cuGetErrorString", status, text)

        def function(*arguments: Any) -> int:
            self._owner.note(name, *arguments)
            self._owner.needs_context(name)
            if name in self._owner.refused:
                return self._owner.refused[name]
            self._owner.depth -= name == "cuCtxPopCurrent_v2"
            for argument in arguments:
                if hasattr(argument, "_obj"):
                    argument._obj.value = 0xC1
            return 0

        return function

    @staticmethod
    def _say(description: bool, status: int, text: Any) -> int:
        text._obj.value = DESCRIPTIONS[status][description].encode() if status in DESCRIPTIONS else None
        return 0


class FakeCache:
    """Compiles nothing; remembers what it was asked for."""

    def __init__(self, version: tuple[int, int] = (13, 0)) -> None:
        self.compiler = type("Compiler", (), {"version": version})
        self.asked: list[tuple[Unit, int]] = []

    def get(self, source: Unit, capability: int) -> Compiled:
        self.asked.append((source, capability))
        return Compiled(b"cubin", {e: f"_{e}" for e in source.expressions}, "")


@dataclass
class Double:
    """A host over a double, and what it records."""

    driver: Driver
    record: Recorder

    def refuse(self, bindings: str, pycuda: str, status: int) -> None:
        """Let a call fail: its name in cuda-bindings, its name in PyCUDA."""
        self.record.refused = {bindings if isinstance(self.record, Bindings) else pycuda: status}
