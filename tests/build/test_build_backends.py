"""The table of TensorRT packages and their targets."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx

from hart_edge.export.build import BACKENDS, check_targets
from hart_edge.export.build.backends import check_precision
from hart_edge.runtime.errors import InputError, MissingPackageError


def test_targets_are_put_in_order() -> None:
    assert check_targets("tensorrt-rtx", "sm120,sm75,sm120") == ("sm75", "sm120")
    assert check_targets("tensorrt-rtx", None) == ("sm75", "sm80", "sm86", "sm89", "sm120")
    assert check_targets("tensorrt", None) == ("native",)


def test_the_package_knows_the_targets() -> None:
    for target in BACKENDS["tensorrt-rtx"].targets:
        assert hasattr(tensorrt_rtx.ComputeCapability, target.upper())


@pytest.mark.parametrize(
    ("backend", "target", "message"),
    [
        ("tensorrt-rtx", "sm90", "target 'sm90' is not one that tensorrt-rtx builds for"),
        ("tensorrt-rtx", "", "target '' is not"),
        ("tensorrt", "sm80", "expected a list of native"),
        ("tensorrt-lite", None, "expected one of tensorrt-rtx, tensorrt"),
    ],
)
def test_unknown(backend: str, target: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_targets(backend, target)


def test_fp8_is_for_ada_and_newer() -> None:
    assert check_targets("tensorrt-rtx", None, "fp8") == ("sm89", "sm120")
    assert check_targets("tensorrt", None, "fp8") == ("native",)
    with pytest.raises(InputError, match="target sm86 has no fp8, and one engine serves all targets; expected a list of sm89, sm120"):
        check_targets("tensorrt-rtx", "sm86,sm89", "fp8")


@pytest.mark.parametrize(
    ("has", "asked", "kind"),
    [("fp16", None, "fp16"), ("int8-w8a8", None, "int8"), ("int8-weight-only", "int8", "int8"), ("fp8", "fp8", "fp8")],
)
def test_the_bundle_says_its_precision(has: str, asked: str | None, kind: str) -> None:
    assert check_precision(bundle_of(has), asked) == kind


@pytest.mark.parametrize(
    ("has", "asked", "message"),
    [
        ("fp32", None, "is fp32; expected fp16 or int8 or fp8"),
        ("fp16", "int8", "is fp16; expected int8"),
        ("fp16", "fp32", "precision 'fp32' cannot be built; expected one of fp16, int8, fp8"),
    ],
)
def test_a_bundle_of_another_precision(has: str, asked: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_precision(bundle_of(has), asked)


def bundle_of(precision: str) -> Any:
    return SimpleNamespace(root="bundle", manifest=SimpleNamespace(precision=precision, floats="fp16"))


@pytest.mark.parametrize(("backend", "extra"), [("tensorrt-rtx", "rtx"), ("tensorrt", "tensorrt")])
def test_missing_package(backend: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'hart-edge\[{extra}\]'"):
        BACKENDS[backend].package.require()
