"""cuBLASLt through nvmath's bindings: matrix products of row-major arrays, planned once per shape, without torch.

    y[i] = alpha · x[i] @ w[i] (+ bias) (+ c[i])        x [m, k], w [k, n] or, transposed, [n, k], y and c [m, n]

cuBLASLt thinks in columns, where a row-major array is its own transpose: the product computed is yᵀ = wᵀ · xᵀ. Sums are
float32; float32 products are true float32, never TF32.

FP8 products (float8_e4m3 times float8_e4m3, per-tensor scales in device memory, y = scale_w · scale_x · x @ wᵀ …) have rules of
their own in cuBLASLt: w transposed, n and k multiples of 16, y, c and bias in float16, a card of SM89 or newer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec
from typing import Any

import numpy as np

from hart_edge.plugins.kernel import FP8, ITEM_BYTES

from ..cuda import Device, DeviceBuffer, Stream
from ..errors import EngineError, GpuMemoryError, InputError, MissingPackageError
from .library_errors import OPENING, checked, closed
from .plans import Plans

WORKSPACE = 32 << 20
"""Bytes of scratch that products may use: what cuBLAS itself takes on Hopper."""
ALIGNMENT = 16
"""Bytes that every operand's address is a multiple of."""
CANDIDATES = 8
"""Algorithms that are measured of those that cuBLASLt's heuristic lists, the best first."""
FP8_MULTIPLE = 16
"""What n and k of an FP8 product are multiples of."""
FAST_ACCUMULATION = False
"""Whether FP8 products may keep their sums in the tensor cores' own, narrower format over all of k.

Off, partial sums go to float32 on the way, which costs speed on Hopper; `tests/fused/bench_fp8.py` measures both, time and error.
"""


@dataclass(frozen=True)
class Shape:
    """What a product is planned for.

    Attributes:
        m, n, k: of one product, as above.
        dtype: of x and w. out: of y, c and bias.
        transposed: w is [n, k].
        bias: [n] is added to every row. add: c is added.
        batch: number of products. strides: elements from one to the next, of x, w, and y and c.
        lead: elements from one row to the next, of x, w, and y and c; 0: rows are packed.
        fast: FP8 only, see FAST_ACCUMULATION.

    Raises InputError for an FP8 product that cuBLASLt does not have.
    """

    m: int
    n: int
    k: int
    dtype: str
    out: str
    transposed: bool = False
    bias: bool = False
    add: bool = False
    alpha: float = 1.0
    batch: int = 1
    strides: tuple[int, int, int] = (0, 0, 0)
    lead: tuple[int, int, int] = (0, 0, 0)
    fast: bool = False

    def __post_init__(self) -> None:
        if self.dtype == FP8 and (not self.transposed or self.out != "float16" or self.n % FP8_MULTIPLE or self.k % FP8_MULTIPLE):
            raise InputError(
                f"the FP8 product of w [{self.n}, {self.k}] to {self.out} was asked for; expected w transposed, its sizes multiples of "
                f"{FP8_MULTIPLE}, and float16.",
                "Keep that weight in float16.",
            )


def bindings() -> tuple[Any, Any]:
    """nvmath's modules cublasLt and cublas; MissingPackageError with the remedy."""
    try:
        with without_its_own_code("nvmath"):
            from nvmath.bindings import cublas, cublasLt
    except ImportError as error:
        raise MissingPackageError(f"nvmath is not installed ({error}).", "pip install 'hart-edge[fused]'") from error
    return cublasLt, cublas


@contextmanager
def without_its_own_code(package: str) -> Iterator[None]:
    """Inside, modules of a package are imported without running the package's `__init__`; an import after that runs it.

    nvmath's imports FFT, sparse and tensor parts and loads every library of CUDA that it finds: three quarters of the time and 250 MB.
    """
    spec = None if package in sys.modules else find_spec(package)
    if spec is None:  # imported already, or not there
        yield
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


class Blas:
    """A cuBLASLt handle, its scratch and the products planned with it. Closed explicitly; the device must outlive it.

    Args:
        plans: measures algorithms, and keeps the fastest.

    Attributes:
        fast_accumulation: of FP8 products that are planned from now on; see FAST_ACCUMULATION.
    """

    def __init__(self, device: Device, plans: Plans) -> None:
        self._device, self.plans, self.fast_accumulation = device, plans, FAST_ACCUMULATION
        self._lt, self._cublas = bindings()
        self._scratch: DeviceBuffer = device.buffer(WORKSPACE)
        with device.active():
            self._handle: int | None = checked(device, "opening cuBLASLt", self._lt.create, remedy=OPENING)
            self.version = f"cuBLASLt {checked(device, 'opening cuBLASLt', self._lt.get_version, remedy=OPENING)}"
        self._plans: dict[Shape, Matmul] = {}

    @property
    def handle(self) -> int:
        if self._handle is None:
            raise EngineError("cuBLASLt was used after it was closed.", "Load the bundle again.")
        return self._handle

    def plan(self, shape: Shape) -> Matmul:
        """The product of that shape, planned when it is first asked for."""
        if shape not in self._plans:
            with self._device.active():
                self._plans[shape] = Matmul(self, self._lt, self._cublas, shape)
        return self._plans[shape]

    @property
    def scratch(self) -> tuple[int, int]:
        """Address and bytes."""
        return self._scratch.address, self._scratch.size

    @property
    def device(self) -> Device:
        return self._device

    def close(self) -> None:
        """Free plans, handle and scratch. Idempotent."""
        if self._handle is None:
            return
        for plan in self._plans.values():
            closed(self._device, "freeing a product", plan.close)
        self._plans.clear()
        closed(self._device, "closing cuBLASLt", self._lt.destroy, self._handle)
        self._handle = None
        self._scratch.close()


class Matmul:
    """One planned product; `run` may be captured in a graph, the first one not: it measures algorithms, if there are several."""

    def __init__(self, blas: Blas, lt: Any, cublas: Any, shape: Shape) -> None:
        self.shape, self._blas, self._lt = shape, blas, lt
        scalar, data, out = _type("float32"), _type(shape.dtype), _type(shape.out)
        self._description = checked(blas.device, "planning a product", lt.matmul_desc_create, cublas.ComputeType.COMPUTE_32F, scalar)
        self._set(cublas, out)
        x, w, y = (
            lead or width for lead, width in zip(shape.lead, (shape.k, shape.k if shape.transposed else shape.n, shape.n), strict=True)
        )
        rows, columns = (shape.k, shape.n) if shape.transposed else (shape.n, shape.k)
        self._w = self._layout(data, rows, columns, w, shape.strides[1])
        self._x = self._layout(data, shape.k, shape.m, x, shape.strides[0])
        self._y = self._layout(out, shape.n, shape.m, y, shape.strides[2])
        self._alpha, self._beta = np.array([shape.alpha], np.float32), np.array([1 if shape.add else 0], np.float32)
        self._identity = f"{blas.version}: {shape!r}"
        self._algorithms = self._kept() or self._find()

    def run(self, x: int, w: int, y: int, stream: Stream, c: int = 0, bias: int = 0, scales: tuple[int, int] = (0, 0)) -> None:
        """Compute on the stream; all arguments are device addresses. c may be y, no other input may.

        scales: of x and w, float32, for FP8 alone.
        """
        if bias:
            self._attribute(self._lt.MatmulDescAttribute.BIAS_POINTER, bias)
        if self.shape.dtype == FP8:
            self._set_scales(*scales)
        if len(self._algorithms) > 1:
            self._choose(x, w, y, stream, c)
        self._multiply(0, x, w, y, stream, c)

    def _choose(self, x: int, w: int, y: int, stream: Stream, c: int) -> None:
        """Measure the algorithms, put the fastest first, alone, and keep it. Where c counts, trials must not write to it."""
        best = None
        with suppress(GpuMemoryError), ExitStack() as stack:
            target = stack.enter_context(self._blas.device.buffer(self._extent())).address if self.shape.add else y
            best = self._blas.plans.fastest(range(len(self._algorithms)), lambda i: self._multiply(i, x, w, target, stream, c or y))
        self._algorithms = [self._algorithms[best or 0]]
        if best is not None:
            self._blas.plans.keep(self._identity, {}, self._algorithms[0].tobytes())

    def _extent(self) -> int:
        """Bytes that y takes."""
        shape = self.shape
        return ((shape.batch - 1) * shape.strides[2] + shape.m * (shape.lead[2] or shape.n)) * ITEM_BYTES[shape.out]

    def _multiply(self, algorithm: int, x: int, w: int, y: int, stream: Stream, c: int) -> None:
        scratch, size = self._blas.scratch
        with self._blas.device.active():
            checked(
                self._blas.device,
                f"the product {self.shape}",
                self._lt.matmul,
                self._blas.handle,
                self._description,
                self._alpha.ctypes.data,
                w,
                self._w,
                x,
                self._x,
                self._beta.ctypes.data,
                c or y,
                self._y,
                y,
                self._y,
                self._algorithms[algorithm].ctypes.data,
                scratch,
                size,
                stream.address,
            )

    def close(self) -> None:
        self._lt.matmul_desc_destroy(self._description)
        for layout in (self._w, self._x, self._y):
            self._lt.matrix_layout_destroy(layout)

    def _set(self, cublas: Any, out: int) -> None:
        attribute = self._lt.MatmulDescAttribute
        transposed = cublas.Operation.T if self.shape.transposed else cublas.Operation.N
        self._attribute(attribute.TRANSA, int(transposed))
        self._attribute(attribute.TRANSB, int(cublas.Operation.N))
        if self.shape.bias:
            self._attribute(attribute.EPILOGUE, int(self._lt.Epilogue.BIAS))
            self._attribute(attribute.BIAS_DATA_TYPE, out)
        if self.shape.dtype == FP8:
            self._attribute(attribute.FAST_ACCUM, int(self.shape.fast))
            scratch, _ = self._blas.scratch  # the heuristic is to see that there are scales and a bias; each run sets its own
            self._set_scales(scratch, scratch)
            if self.shape.bias:
                self._attribute(attribute.BIAS_POINTER, scratch)

    def _set_scales(self, x: int, w: int) -> None:
        """cuBLASLt's A is w, its B is x."""
        attribute = self._lt.MatmulDescAttribute
        self._attribute(attribute.A_SCALE_POINTER, w)
        self._attribute(attribute.B_SCALE_POINTER, x)

    def _attribute(self, attribute: Any, value: int) -> None:
        buffer = np.array([value], self._lt.get_matmul_desc_attribute_dtype(attribute))
        self._lt.matmul_desc_set_attribute(self._description, attribute, buffer.ctypes.data, buffer.nbytes)

    def _layout(self, dtype: int, rows: int, columns: int, lead: int, stride: int) -> int:
        layout: int = self._lt.matrix_layout_create(dtype, rows, columns, lead)
        if self.shape.batch > 1:
            attribute = self._lt.MatrixLayoutAttribute
            for name, value in ((attribute.BATCH_COUNT, self.shape.batch), (attribute.STRIDED_BATCH_OFFSET, stride)):
                buffer = np.array([value], self._lt.get_matrix_layout_attribute_dtype(name))
                self._lt.matrix_layout_set_attribute(layout, name, buffer.ctypes.data, buffer.nbytes)
        return layout

    def _kept(self) -> list[Any]:
        """The algorithm that an earlier start kept, alone; nothing without one, or with one that cuBLASLt does not take."""
        found = self._blas.plans.find(self._identity)
        if found is None or len(found[1]) != self._results(1)["algo"].nbytes:
            return []
        algorithm = np.frombuffer(found[1], self._lt.matmul_heuristic_result_dtype["algo"]).copy()
        result, operands = self._results(1), (self._blas.handle, self._description, self._w, self._x, self._y, self._y)
        try:
            checked(
                self._blas.device,
                f"checking {self.shape}",
                self._lt.matmul_algo_check,
                *operands,
                algorithm.ctypes.data,
                result.ctypes.data,
            )
        except EngineError:
            return []
        return [algorithm] if not result["state"][0] and result["workspace_size"][0] <= WORKSPACE else []

    def _find(self) -> list[Any]:
        """The algorithms that cuBLASLt's heuristic lists, the best first; EngineError when there is none.

        Those that add parts of a sum in the output's type are left out: the fastest of all would often be one of them.
        """
        preference = self._lt.matmul_preference_create()
        attribute = self._lt.MatmulPreferenceAttribute
        limits = {attribute.MAX_WORKSPACE_BYTES: WORKSPACE, attribute.REDUCTION_SCHEME_MASK: int(self._lt.ReductionScheme.COMPUTE_TYPE)}
        limits |= {getattr(attribute, f"MIN_ALIGNMENT_{operand}_BYTES"): ALIGNMENT for operand in "ABCD"}
        for name, value in limits.items():
            buffer = np.array([value], self._lt.get_matmul_preference_attribute_dtype(name))
            self._lt.matmul_preference_set_attribute(preference, name, buffer.ctypes.data, buffer.nbytes)
        results, count = self._results(CANDIDATES), np.zeros(1, np.int32)
        operands = (self._blas.handle, self._description, self._w, self._x, self._y, self._y, preference)
        wanted = (CANDIDATES, results.ctypes.data, count.ctypes.data)
        checked(self._blas.device, f"planning {self.shape}", self._lt.matmul_algo_get_heuristic, *operands, *wanted)
        self._lt.matmul_preference_destroy(preference)
        found = [results["algo"][i : i + 1].copy() for i in range(count[0]) if not results["state"][i]]
        if not found:
            raise EngineError(f"cuBLASLt has no algorithm for {self.shape}.", "Use the backend ort-cuda or cpu.")
        return found

    def _results(self, count: int) -> Any:
        return np.zeros(count, self._lt.matmul_heuristic_result_dtype)


def _type(dtype: str) -> int:
    """cudaDataType_t."""
    return {"float32": 0, "float16": 2, FP8: 28}[dtype]
