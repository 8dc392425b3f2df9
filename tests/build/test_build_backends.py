"""The table of TensorRT packages and their targets."""

from __future__ import annotations

import importlib.util

import pytest
import tensorrt_rtx

from hart_edge.export.build import BACKENDS, check_targets
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


@pytest.mark.parametrize(("backend", "extra"), [("tensorrt-rtx", "rtx"), ("tensorrt", "tensorrt")])
def test_missing_package(backend: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'hart-edge\[{extra}\]'"):
        BACKENDS[backend].require()
