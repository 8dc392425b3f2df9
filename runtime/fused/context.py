"""What every part of the fused engine works with: the device, its stream, the kernels, cuBLASLt and cuDNN."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import TracebackType

import numpy as np

from hart_edge.plugins import KERNELS, Buffer, Launch, sources

from ..cuda import Device
from ..drivers import AUTO
from ..engine import Array
from ..errors import GpuLostError, InputError
from ..kernel_cache import KernelCache
from ..kernels import KernelLibrary
from . import blas, cudnn
from .blas import Blas
from .buffers import nbytes
from .cudnn import Cudnn
from .plans import Plans


class FusedContext:
    """One GPU, opened for the fused engine. A context manager; closing it frees everything on the device.

    Args:
        cache: of compiled kernels; measured plans of the libraries are kept in the folder `plans` in it.

    Attributes:
        device, stream: where everything runs, in order.
        library: our kernels.
        blas, cudnn: NVIDIA's libraries on the same stream.
    """

    def __init__(self, index: int = 0, host: str = AUTO, cache: KernelCache | None = None) -> None:
        with ExitStack() as stack:
            with ThreadPoolExecutor(1, "imports") as pool:
                libraries = pool.submit(_import_libraries)  # takes as long as the driver to make a context, at the same time
                self.device = stack.enter_context(Device(index, host))
            self.stream = self.device.stream()
            cache = cache or KernelCache()
            self.library = KernelLibrary(self.device, sources(), KERNELS, cache)
            libraries.result()
            plans = Plans(self.device, self.stream, cache.folder / "plans")
            self.blas = Blas(self.device, plans)
            stack.callback(self.blas.close)
            self.cudnn = Cudnn(self.device, self.stream, plans)
            stack.callback(self.cudnn.close)
            self._stack = stack.pop_all()

    def launch(self, *launches: Launch | Iterable[Launch]) -> None:
        """Run kernels on the stream, in order."""
        for item in launches:
            for launch in (item,) if isinstance(item, Launch) else item:
                self.library.launch(launch, self.stream)

    def upload(self, buffer: Buffer, array: Array) -> None:
        """An array of the buffer's shape and dtype to the device, in the order of the stream; it is read at once."""
        _check_fits(buffer, array)
        upload = self.device.driver.upload
        self.device.call("copying to the GPU", upload, buffer.address, np.ascontiguousarray(array), self.stream.handle)

    def download(self, buffer: Buffer) -> Array:
        """A new array with the buffer's contents; waits for the stream."""
        array = np.empty(buffer.shape, buffer.dtype)
        self.device.call("copying from the GPU", self.device.driver.download, array, buffer.address, self.stream.handle)
        self.stream.synchronize()
        return array

    def copy(self, source: Buffer, target: Buffer) -> None:
        """On the device, in the order of the stream; both of one size."""
        if nbytes(source) != nbytes(target):
            raise InputError(f"{source} was to be copied to {target}; expected one size.")
        call = self.device.driver.copy
        self.device.call("copying on the GPU", call, target.address, source.address, nbytes(source), self.stream.handle)

    def zero(self, buffer: Buffer) -> None:
        """All bytes become 0, in the order of the stream."""
        fill = self.device.driver.fill
        self.device.call("filling a buffer", fill, buffer.address, 0, nbytes(buffer), self.stream.handle)

    def wait_to_free(self) -> None:
        """Until nothing on the stream uses memory that is about to be freed; a lost GPU uses none."""
        with suppress(GpuLostError):
            self.stream.synchronize()

    def close(self) -> None:
        """Idempotent."""
        self._stack.close()

    def __enter__(self) -> FusedContext:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _import_libraries() -> None:
    """The packages, and cuBLAS, which cuDNN looks for among what is loaded. Raises MissingPackageError."""
    blas.bindings()
    with suppress(ImportError, RuntimeError):  # a library that is not there is named by whoever needs it
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("cublas")
    cudnn.bindings()


def _check_fits(buffer: Buffer, array: Array) -> None:
    if (array.shape, array.dtype.name) != (buffer.shape, buffer.dtype):
        raise InputError(f"{array.dtype} {list(array.shape)} was to be copied to {buffer}; expected the same shape and type.")
