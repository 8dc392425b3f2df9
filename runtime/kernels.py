"""Launching the kernels of `plugins/` on a device: compiled or loaded from the cache on first use, one module a source.

Knows nothing of what a kernel computes; it takes launches, which the operators' files build, as data.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from .cuda import Device, Function, Module, Stream
from .errors import GpuError, KernelError
from .kernel_cache import KernelCache
from .nvrtc import unit

Size3 = tuple[int, int, int]


class KernelLike(Protocol):
    """An instantiation: source file, name expression, least and greatest compute capability as 10 · major + minor."""

    @property
    def source(self) -> str: ...
    @property
    def expression(self) -> str: ...
    @property
    def minimum(self) -> int: ...
    @property
    def maximum(self) -> int: ...


class LaunchLike(Protocol):
    """One launch. Arguments are NumPy scalars, or device addresses as objects with an integer `value`."""

    @property
    def kernel(self) -> KernelLike: ...
    @property
    def grid(self) -> Size3: ...
    @property
    def block(self) -> Size3: ...
    @property
    def shared(self) -> int: ...
    @property
    def arguments(self) -> tuple[Any, ...]: ...


class KernelLibrary:
    """The kernels of some sources on one device.

    Args:
        sources: text of the .cuh files by name.
        kernels: the instantiations that are compiled together with their source; any other is compiled alone.
        cache: in the user's cache folder if not given.

    Raises GpuError when the installed driver is too old for what the compiler makes.
    """

    def __init__(self, device: Device, sources: Mapping[str, str], kernels: Iterable[KernelLike], cache: KernelCache | None = None) -> None:
        self._device = device
        self._sources = sources
        self._kernels = tuple(kernels)
        self._cache = cache or KernelCache()
        self._functions: dict[tuple[str, str], Function] = {}
        self._modules: list[Module] = []
        self._lock = threading.Lock()
        _check_driver(device.info.driver_version, self._cache.compiler.version)

    def launch(self, launch: LaunchLike, stream: Stream) -> None:
        """Launch asynchronously on the stream."""
        self.function(launch.kernel).launch(stream, launch.grid, launch.block, launch.shared, pack(launch.arguments))

    def function(self, kernel: KernelLike) -> Function:
        """The kernel on the device; KernelError if it does not compile or the device is too old for it."""
        key = (kernel.source, kernel.expression)
        if key not in self._functions:
            with self._lock:
                if key not in self._functions:
                    self._load(kernel)
        return self._functions[key]

    def load(self) -> None:
        """Load all kernels that this device can run; a capture cannot load any."""
        for kernel in self._kernels:
            if fits(kernel, self._device.info.capability):
                self.function(kernel)

    def close(self) -> None:
        """Unload the modules. Idempotent; the device does it too."""
        self._functions.clear()
        while self._modules:
            self._modules.pop().close()

    def _load(self, kernel: KernelLike) -> None:
        capability = self._device.info.capability
        if not fits(kernel, capability):
            message = f"{kernel.expression} needs compute capability {needs(kernel)}"
            raise KernelError(f"{message}; {self._device.info.name} has SM{capability}.", "Use another precision.")
        expressions = expressions_of(self._kernels, kernel.source, capability)
        if kernel.expression not in expressions:
            expressions = (kernel.expression,)
        compiled = self._cache.get(unit(kernel.source, self._sources, expressions), capability)
        module = self._device.module(compiled.cubin)
        self._modules.append(module)
        for expression, name in compiled.names.items():
            self._functions[kernel.source, expression] = module.function(name)


def expressions_of(kernels: Iterable[KernelLike], source: str, capability: int) -> tuple[str, ...]:
    """What a source is compiled with for SM`capability`, in a fixed order."""
    return tuple(sorted({k.expression for k in kernels if k.source == source and fits(k, capability)}))


def fits(kernel: KernelLike, capability: int) -> bool:
    """Whether a GPU of SM`capability` can run it."""
    return kernel.minimum <= capability <= kernel.maximum


def needs(kernel: KernelLike) -> str:
    """The compute capability that it needs, in words; of one that is bound to an architecture, that one."""
    return f"SM{kernel.minimum}" + ("" if kernel.maximum > kernel.minimum else " and no other")


def pack(arguments: Iterable[Any]) -> bytes:
    """Kernel parameters as C lays them out: each aligned to its own size. Device addresses become 64-bit numbers."""
    codes, values = ["@"], []
    for index, argument in enumerate(arguments):
        if isinstance(argument, np.number):
            codes.append(argument.dtype.char)
            values.append(argument)
        elif hasattr(argument, "value"):
            codes.append("Q")
            values.append(argument.value)
        else:
            raise TypeError(f"argument {index} is {argument!r}; expected a NumPy scalar or an object with an integer value.")
    return struct.pack("".join(codes), *values)


def _check_driver(driver: int, compiler: tuple[int, int]) -> None:
    """Machine code runs on every driver of the compiler's major version, and on newer ones."""
    if driver // 1000 < compiler[0]:
        raise GpuError(
            f"the NVIDIA driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, but the compiler (NVRTC) is of CUDA "
            f"{compiler[0]}.{compiler[1]}; expected a driver for CUDA {compiler[0]}.0 or newer.",
            f"Install a current NVIDIA driver, or: pip install 'nvidia-cuda-nvrtc-cu{driver // 1000}'",
        )
