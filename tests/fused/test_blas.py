"""What cuBLASLt is asked for, with a double of nvmath's bindings: shapes, transposition, epilogue, batches, errors."""

from __future__ import annotations

import ctypes
import importlib
import sys
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated_scales import emulated_gpu
from kept_plans import Chosen

from hart_edge.plugins.kernel import FP8
from hart_edge.runtime.errors import EngineError, InputError, MissingPackageError
from hart_edge.runtime.fused import blas as blas_module
from hart_edge.runtime.fused.blas import ALIGNMENT, WORKSPACE, Blas, Shape


def enum(name: str, *names: str) -> Any:
    return IntEnum(name, {each: i for i, each in enumerate(names)})


class Bindings:
    """`nvmath.bindings.cublasLt`: descriptors are numbers, and what they were given is kept by number.

    Attributes:
        made: descriptor → what it was created with, and its attributes by name.
        found: algorithms that the heuristic finds; each consists of one number, from 5 on. takes_kept: whether a kept one is taken.
        products: arguments of every product. scales: where cuBLASLt's A and B had theirs.
    """

    Epilogue = enum("Epilogue", "DEFAULT", "BIAS")
    MatmulDescAttribute = enum(
        "MatmulDescAttribute",
        "TRANSA",
        "TRANSB",
        "EPILOGUE",
        "BIAS_POINTER",
        "BIAS_DATA_TYPE",
        "A_SCALE_POINTER",
        "B_SCALE_POINTER",
        "FAST_ACCUM",
    )
    MatrixLayoutAttribute = enum("MatrixLayoutAttribute", "BATCH_COUNT", "STRIDED_BATCH_OFFSET")
    MatmulPreferenceAttribute = enum(
        "MatmulPreferenceAttribute",
        "MAX_WORKSPACE_BYTES",
        "REDUCTION_SCHEME_MASK",
        *(f"MIN_ALIGNMENT_{operand}_BYTES" for operand in "ABCD"),
    )
    ReductionScheme = IntEnum("ReductionScheme", {"NONE": 0, "INPLACE": 1, "COMPUTE_TYPE": 2, "OUTPUT_TYPE": 4})
    matmul_heuristic_result_dtype = np.dtype([("algo", [("data_", "<u8", (8,))]), ("workspace_size", "<u8"), ("state", "<i4")])

    def __init__(self) -> None:
        self.made: dict[int, dict[str, Any]] = {}
        self.found, self.products, self.destroyed, self.takes_kept = 1, [], [], True
        self.scales: list[tuple[int | None, int | None]] = []

    def create(self) -> int:
        return 77

    def get_version(self) -> int:
        return 130100

    def destroy(self, handle: int) -> None:
        self.destroyed.append(handle)

    def _new(self, **facts: Any) -> int:
        self.made[len(self.made) + 1] = facts
        return len(self.made)

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        return self._new(kind="product", compute=compute, scale=scale)

    def matrix_layout_create(self, dtype: int, rows: int, columns: int, lead: int) -> int:
        return self._new(kind="layout", dtype=dtype, rows=rows, columns=columns, lead=lead)

    def matmul_preference_create(self) -> int:
        return self._new(kind="preference")

    def _set(self, which: int, attribute: Any, address: int, size: int) -> None:
        self.made[which][attribute.name] = int.from_bytes(ctypes.string_at(address, size), "little")

    matmul_desc_set_attribute = matrix_layout_set_attribute = matmul_preference_set_attribute = _set

    def get_matmul_desc_attribute_dtype(self, attribute: Any) -> Any:
        return np.int64 if attribute.name.endswith("POINTER") else np.int8 if attribute.name == "FAST_ACCUM" else np.int32

    def get_matrix_layout_attribute_dtype(self, attribute: Any) -> Any:
        return np.int32 if attribute.name == "BATCH_COUNT" else np.int64

    def get_matmul_preference_attribute_dtype(self, attribute: Any) -> Any:
        return np.uint64 if attribute.name.startswith("MAX") else np.uint32

    def matmul_algo_get_heuristic(self, *arguments: int) -> None:
        results, count = arguments[-2:]
        for i in range(self.found):
            ctypes.memset(results + i * self.matmul_heuristic_result_dtype.itemsize, 5 + i, 64)
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int32))[0] = self.found

    def matmul_algo_check(self, *arguments: int) -> None:
        if not self.takes_kept:
            raise RuntimeError("NOT_SUPPORTED")

    def matmul(self, *arguments: int) -> None:
        self.products.append(arguments)
        description = self.made[arguments[1]]
        self.scales.append((description.get("A_SCALE_POINTER"), description.get("B_SCALE_POINTER")))

    def _destroy(self, which: int) -> None:
        self.destroyed.append(which)

    matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = _destroy


@pytest.fixture
def lt(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    double = Bindings()
    cublas = SimpleNamespace(ComputeType=SimpleNamespace(COMPUTE_32F=68), Operation=enum("Operation", "N", "T"))
    monkeypatch.setattr(blas_module, "bindings", lambda: (double, cublas))
    return double


@pytest.fixture
def blas(lt: Bindings) -> Blas:
    return open_blas(Chosen(0))


def open_blas(plans: Chosen) -> Blas:
    return Blas(emulated_gpu(40 << 20).device, plans)  # type: ignore[arg-type]


def layouts(lt: Bindings, product: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(rows, columns, leading dimension) of cuBLASLt's A, B, C and D."""
    return [tuple(lt.made[product[i]][key] for key in ("rows", "columns", "lead")) for i in (4, 6, 9, 11)]


def test_a_row_major_product_is_the_transposed_one_in_columns(lt: Bindings, blas: Blas) -> None:
    stream: Any = SimpleNamespace(address=0x51)
    blas.plan(Shape(m=5, n=7, k=3, dtype="float16", out="float32", bias=True, add=True)).run(100, 200, 300, stream, 400, 500)
    (product,) = lt.products
    assert layouts(lt, product) == [(7, 3, 7), (3, 5, 3), (7, 5, 7), (7, 5, 7)]
    description = lt.made[product[1]]
    assert description["compute"] == 68
    assert (description["TRANSA"], description["TRANSB"], description["EPILOGUE"]) == (0, 0, Bindings.Epilogue.BIAS)
    assert (description["BIAS_POINTER"], description["BIAS_DATA_TYPE"]) == (500, 0)
    assert (product[3], product[5], product[8], product[10]) == (200, 100, 400, 300)  # A is w, B is x
    assert [lt.made[product[i]]["dtype"] for i in (4, 6, 9, 11)] == [2, 2, 0, 0]
    assert product[-2:] == (WORKSPACE, 0x51)
    alpha, beta = (ctypes.cast(product[i], ctypes.POINTER(ctypes.c_float))[0] for i in (2, 7))
    assert (alpha, beta) == (1.0, 1.0)


def test_transposed_and_strided_batches(lt: Bindings, blas: Blas) -> None:
    stream: Any = SimpleNamespace(address=1)
    shape = Shape(4, 6, 8, "float32", "float32", transposed=True, batch=3, strides=(96, 144, 24), lead=(24, 25, 0), alpha=0.5)
    blas.plan(shape).run(100, 200, 300, stream)
    (product,) = lt.products
    assert layouts(lt, product) == [(8, 6, 25), (8, 4, 24), (6, 4, 6), (6, 4, 6)]
    assert lt.made[product[1]]["TRANSA"] == 1
    assert [lt.made[product[i]]["STRIDED_BATCH_OFFSET"] for i in (4, 6, 9)] == [144, 96, 24]
    assert all(lt.made[product[i]]["BATCH_COUNT"] == 3 for i in (4, 6, 9))
    alpha, beta = (ctypes.cast(product[i], ctypes.POINTER(ctypes.c_float))[0] for i in (2, 7))
    assert (alpha, beta) == (0.5, 0.0)
    assert product[8] == 300  # C is not read, but cuBLASLt wants an address


@pytest.mark.parametrize("fast", [False, True])
def test_fp8_products_have_scales_of_their_own(lt: Bindings, blas: Blas, fast: bool) -> None:
    """One plan for all weights of a shape: each run says where its scales are."""
    stream: Any = SimpleNamespace(address=1)
    shape = Shape(5, 32, 48, FP8, "float16", transposed=True, bias=True, add=True, lead=(0, 0, 96), fast=fast)
    blas.plan(shape).run(100, 200, 300, stream, 300, 500, scales=(700, 800))
    (product,) = lt.products
    assert layouts(lt, product) == [(48, 32, 48), (48, 5, 48), (32, 5, 96), (32, 5, 96)]
    assert [lt.made[product[i]]["dtype"] for i in (4, 6, 9, 11)] == [28, 28, 2, 2]
    description = lt.made[product[1]]
    assert (description["TRANSA"], description["TRANSB"], description["FAST_ACCUM"]) == (1, 0, fast)
    assert (description["A_SCALE_POINTER"], description["B_SCALE_POINTER"]) == (800, 700)  # A is w, B is x
    assert (description["BIAS_POINTER"], description["BIAS_DATA_TYPE"]) == (500, 2)


@pytest.mark.parametrize("how", [{"transposed": False}, {"out": "float32"}, {"n": 24}, {"k": 40}])
def test_fp8_products_that_cublaslt_does_not_have_are_named(how: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"FP8 product of w \[\d+, \d+\].*multiples of 16, and float16"):
        Shape(**{"m": 5, "n": 32, "k": 48, "dtype": FP8, "out": "float16", "transposed": True, **how})


def test_plans_are_made_once_and_freed(lt: Bindings, blas: Blas) -> None:
    shape = Shape(1, 2, 3, "float16", "float16")
    assert blas.plan(shape) is blas.plan(shape)
    preference = next(facts for facts in lt.made.values() if facts["kind"] == "preference")
    assert preference["MAX_WORKSPACE_BYTES"] == WORKSPACE
    assert preference["REDUCTION_SCHEME_MASK"] == 2  # parts of a sum are added in float32
    assert preference["MIN_ALIGNMENT_D_BYTES"] == ALIGNMENT
    for _ in range(2):
        blas.close()
    assert sorted(lt.destroyed) == sorted([*lt.made, 77])
    with pytest.raises(EngineError, match="after it was closed"):
        blas.handle  # noqa: B018


def test_a_product_without_an_algorithm_is_an_error(lt: Bindings, blas: Blas) -> None:
    lt.found = 0
    with pytest.raises(EngineError, match="no algorithm for Shape"):
        blas.plan(Shape(1, 2, 3, "float16", "float16"))


def algorithms(lt: Bindings) -> list[int]:
    """The number that each product's algorithm consists of."""
    return [ctypes.string_at(product[12], 1)[0] for product in lt.products]


@pytest.mark.parametrize("add", [False, True])
def test_the_first_run_measures_and_the_fastest_stays(lt: Bindings, add: bool) -> None:
    """A product that adds to its output writes elsewhere while it is measured."""
    lt.found, plans, stream = 3, Chosen(2), SimpleNamespace(address=1)
    plan = open_blas(plans).plan(Shape(4, 6, 8, "float16", "float16", add=add))
    for _ in range(2):
        plan.run(100, 200, 300, stream, 300 if add else 0)  # type: ignore[arg-type]
    assert plans.tried == 3
    assert algorithms(lt)[3:] == [7, 7]
    targets = [product[10] for product in lt.products]
    assert [product[8] for product in lt.products] == [300] * 5
    assert targets[3:] == [300, 300]
    assert all((target == 300) is not add for target in targets[:3])
    assert list(plans.kept.values()) == [({}, bytes([7] * 64))]


def test_a_kept_algorithm_is_taken_where_cublaslt_takes_it(lt: Bindings) -> None:
    shape, stream = Shape(4, 6, 8, "float16", "float16"), SimpleNamespace(address=1)
    key = f"cuBLASLt 130100: {shape!r}"
    lt.found = 2
    for kept, takes, expected in ((bytes([9] * 64), True, 9), (bytes([9] * 64), False, 5), (bytes([9] * 63), True, 5)):
        lt.takes_kept, lt.products = takes, []
        plans = Chosen(0, {key: ({}, kept)})
        open_blas(plans).plan(shape).run(100, 200, 300, stream)  # type: ignore[arg-type]
        assert algorithms(lt)[-1] == expected
        assert plans.tried == (0 if expected == 9 else 2)


def test_fp8_is_measured_with_the_scales_of_the_run_and_kept_by_how_it_sums(lt: Bindings) -> None:
    lt.found, plans, stream = 3, Chosen(1), SimpleNamespace(address=1)
    blas = open_blas(plans)
    for fast in (False, True):
        shape = Shape(5, 32, 48, FP8, "float16", transposed=True, add=True, lead=(0, 0, 96), fast=fast)
        lt.products, lt.scales = [], []
        for scales in ((700, 800), (701, 801)):
            blas.plan(shape).run(100, 200, 300, stream, 300, scales=scales)  # type: ignore[arg-type]
        assert lt.scales == [(800, 700)] * 4 + [(801, 701)]
        assert algorithms(lt) == [5, 6, 7, 6, 6]
        assert plans.kept[f"cuBLASLt 130100: {shape!r}"] == ({}, bytes([6] * 64))
    assert len(plans.kept) == 2


def test_where_no_algorithm_runs_the_first_one_says_why(lt: Bindings) -> None:
    lt.found, plans = 2, Chosen(None)
    open_blas(plans).plan(Shape(4, 6, 8, "float16", "float16")).run(100, 200, 300, SimpleNamespace(address=1))  # type: ignore[arg-type]
    assert algorithms(lt)[-1] == 5
    assert not plans.kept


def test_parts_of_a_package_are_imported_without_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "heavy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .part import weight\nran = True\n")
    (folder / "part.py").write_text("from .other import weight\n")
    (folder / "other.py").write_text("weight = 19\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with blas_module.without_its_own_code("heavy_package"):
            part = importlib.import_module("heavy_package.part")
        assert part.weight == 19 and "heavy_package" not in sys.modules
        whole = importlib.import_module("heavy_package")
        assert whole.ran and importlib.import_module("heavy_package.part") is part
        with blas_module.without_its_own_code("heavy_package"), blas_module.without_its_own_code("no_such_package"):
            assert sys.modules["heavy_package"] is whole and "no_such_package" not in sys.modules
        assert sys.modules["heavy_package"] is whole
    finally:
        for name in [name for name in sys.modules if name.startswith("heavy_package")]:
            del sys.modules[name]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvmath", None)
    monkeypatch.delitem(sys.modules, "nvmath.bindings", raising=False)  # where another test has imported it
    with pytest.raises(MissingPackageError, match=r"nvmath is not installed.*hart-edge\[fused\]"):
        blas_module.bindings()


def test_a_library_that_does_not_open_says_what_to_install(lt: Bindings) -> None:
    def refuse() -> int:
        raise RuntimeError("Failed to dlopen libcublasLt.so.13")

    lt.create = refuse  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"opening cuBLASLt failed: Failed to dlopen.*pip install -U 'hart-edge\[fused\]'"):
        open_blas(Chosen())
