"""The NVIDIA driver and its GPUs, asked through the driver's own library: no package of CUDA is needed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from ..cuda import LEAST_CAPABILITY
from ..drivers import CudaStatus, explain
from ..drivers.libcuda import LibCuda
from .lack import Lack, lack_of

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
NAME_LENGTH = 256
CUDA_MAJOR = 13
"""Of the packages that the extra `fused` brings."""
UNSEEN = Lack("the NVIDIA driver sees no GPU.", "Check nvidia-smi and CUDA_VISIBLE_DEVICES.")


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: as CUDA counts; the backends take 0.
        capability: 10 · major + minor.
        memory: bytes. free: bytes, None if the GPU could not be opened, and `problem` says why.
    """

    index: int
    name: str
    capability: int
    memory: int
    free: int | None
    problem: str = ""


@dataclass(frozen=True)
class GpuState:
    """What the driver says.

    Attributes:
        cuda: the newest CUDA that the driver supports, 1000 · major + 10 · minor; None without a driver that works.
        problem: why nothing can be said or seen.
    """

    cuda: int | None
    gpus: tuple[Gpu, ...]
    problem: Lack | None


class Probe(LibCuda):
    """Questions to the driver. CudaStatus if its library is missing or refuses one."""

    def initialise(self) -> None:
        self._do("cuInit", 0)

    def version(self) -> int:
        return self._number("cuDriverGetVersion")

    def count(self) -> int:
        return self._number("cuDeviceGetCount")

    def gpu(self, index: int) -> Gpu:
        """All facts about one GPU; opens it for a moment."""
        device = ctypes.c_int(self._number("cuDeviceGet", index))
        name, memory = ctypes.create_string_buffer(NAME_LENGTH), ctypes.c_size_t()
        self._do("cuDeviceGetName", name, NAME_LENGTH, device)
        self._do("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        capability = 10 * self._number("cuDeviceGetAttribute", MAJOR, device) + self._number("cuDeviceGetAttribute", MINOR, device)
        try:
            free, problem = self._free(device), ""
        except CudaStatus as status:
            free, problem = None, str(explain(status, "opening it"))
        return Gpu(index, name.value.decode(errors="replace"), capability, memory.value, free, problem)

    def _free(self, device: ctypes.c_int) -> int:
        context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        try:
            self._do("cuCtxPushCurrent_v2", context)
            try:
                self._do("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            finally:
                self.pop()
        finally:
            self._do("cuDevicePrimaryCtxRelease", device)
        return free.value

    def _number(self, name: str, *arguments: Any) -> int:
        """Of a call that writes an int to its first argument."""
        value = ctypes.c_int()
        self._do(name, ctypes.byref(value), *arguments)
        return value.value


def look_at_gpus(library: Any = None) -> GpuState:
    """Ask the driver; never raises for a driver that is missing or does not work.

    Args:
        library: the driver's; found by its name if not given.
    """
    version: int | None = None
    gpus: list[Gpu] = []
    try:
        probe = Probe(library)
        probe.initialise()
        version = probe.version()
        gpus += [probe.gpu(index) for index in range(probe.count())]
    except CudaStatus as status:
        return GpuState(version, tuple(gpus), lack_of(explain(status, "asking the NVIDIA driver")))
    return GpuState(version, tuple(gpus), None if gpus else UNSEEN)


def gpu_lacks(state: GpuState) -> list[Lack]:
    """What keeps every GPU backend from working; nothing about packages."""
    if state.problem is not None:
        return [state.problem]
    lacks, first = [], state.gpus[0]
    if first.capability < LEAST_CAPABILITY:
        what = f"{first.name} has SM{first.capability}; expected SM{LEAST_CAPABILITY} (Turing, 2018) or newer."
        lacks.append(Lack(what, "Use another GPU (CUDA_VISIBLE_DEVICES) or the CPU."))
    if first.problem:
        lacks.append(Lack(f"{first.name} does not open: {first.problem}"))
    return lacks


def driver_lacks(state: GpuState) -> list[Lack]:
    """Whether the driver is too old for the packages of CUDA that hart-edge installs."""
    if state.cuda is None or state.cuda // 1000 >= CUDA_MAJOR:
        return []
    what = f"the NVIDIA driver supports CUDA {cuda_text(state.cuda)}; expected {CUDA_MAJOR}.0 or newer."
    return [Lack(what, "Install a current NVIDIA driver and restart.")]


def cuda_text(version: int) -> str:
    """13020 as "13.2"."""
    return f"{version // 1000}.{version % 1000 // 10}"
