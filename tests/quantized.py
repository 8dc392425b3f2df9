"""Fixtures of several test folders: quantised bundles of the tiny random checkpoint, made once; tests never change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hart_edge.calibration.material import Material
from hart_edge.calibration.run import Request, calibrate, prepare
from hart_edge.calibration.schemes import scheme_of
from hart_edge.runtime import Bundle

PROMPTS = ("a lighthouse", "a boat at sea")


@pytest.fixture(scope="session")
def material(bundle_root: Path) -> Material:
    """Statistics of the tiny fp32 bundle for W8A8."""
    return prepare(Bundle(bundle_root), Request("w8a8", PROMPTS))


@pytest.fixture(scope="session")
def choice(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A sensitivity file: every group as the scheme wants it, but for those that are named."""

    def write(scheme: str, **other: str) -> Path:
        wanted = scheme_of(scheme).engines
        names = {group: wanted[products[0].engine].name for group, products in material.groups.items() if products[0].engine in wanted}
        path = tmp_path_factory.mktemp("choice") / "choice.json"
        path.write_text(json.dumps({"scheme": scheme, "choice": names | {g.replace("__", "."): t for g, t in other.items()}}))
        return path

    return write


@pytest.fixture(scope="session")
def w8a8_root(bundle_root: Path, choice: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8, one group with float activations and one float."""
    chosen = choice("w8a8", transformer__layers__0__down="weight-only", transformer__head="float")
    target = tmp_path_factory.mktemp("w8a8") / "bundle"
    return calibrate(Bundle(bundle_root), target, Request("w8a8", PROMPTS), chosen).root


@pytest.fixture(scope="session")
def weight_only_root(bundle_root: Path, choice: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("weight-only") / "bundle"
    return calibrate(Bundle(bundle_root), target, Request("weight-only", PROMPTS), choice("weight-only")).root
