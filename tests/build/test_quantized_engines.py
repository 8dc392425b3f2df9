"""TensorRT-RTX engines of quantised bundles: what they are built for, and which products are quantised in the parsed network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from hart_edge.calibration.run import Request, calibrate
from hart_edge.export.build import build_bundle
from hart_edge.runtime import Bundle
from hart_edge.runtime.bundle import SIDECAR
from hart_edge.runtime.errors import InputError

PROMPTS = ("a lighthouse", "a boat at sea")
LAYERS, TEXT_LAYERS = 2, 2


Build = Callable[[str, str | None], dict[str, Any]]


@pytest.fixture(scope="module")
def build(bundle_root_fp16: Path, choice: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The sidecar of a scheme's engines for some targets, all for None."""

    def made(scheme: str, targets: str | None) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(scheme)
        other = {"transformer__layers__0__down": "weight-only"} if scheme == "w8a8" else {}
        bundle = calibrate(Bundle(bundle_root_fp16), folder / "bundle", Request(scheme, PROMPTS), choice(scheme, **other))
        build_bundle(bundle, folder / "engines", targets=targets, batch=1)
        return json.loads((folder / "engines" / SIDECAR).read_text()) | {"root": bundle.root}

    return made


def rounded(sidecar: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (facts["quantize"], facts["dequantize"]) for name, facts in sidecar["engines"].items()}


def products(root: Path, engine: str) -> int:
    graph = onnx.load(root / f"{engine}.onnx", load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    makers = {name: node for node in graph.node for name in node.output}

    def weight(name: str) -> bool:
        return name in stored or (name in makers and makers[name].input[0] in stored)

    return sum(node.op_type in ("MatMul", "Conv") and weight(node.input[1]) for node in graph.node)


def test_w8a8_for_every_architecture(build: Build) -> None:
    sidecar = build("w8a8", None)
    assert sidecar["precision"] == "int8-w8a8" and sidecar["targets"] == ["sm75", "sm80", "sm86", "sm89", "sm120"]
    placed, root = rounded(sidecar), sidecar["root"]
    matrices = 5 * LAYERS + 1
    assert placed["transformer"] == (matrices - 1, 2 * (matrices - 1) + 1)  # all but one down-projection round their input
    assert placed["text_encoder"] == (0, 7 * TEXT_LAYERS)  # weights alone
    assert placed["residual_step"] == (products(root, "residual_step"), 2 * products(root, "residual_step"))
    for engine in ("context", "residual_condition", "decoder"):
        assert placed[engine] == (0, products(root, engine))
    assert placed["transition"] == (0, 0)
    transformer = sidecar["engines"]["transformer"]
    assert transformer["attention"] == transformer["attention_lengths"] == LAYERS and transformer["kv_cache_updates"] == 2 * LAYERS


def test_weights_alone(build: Build) -> None:
    sidecar = build("weight-only", "sm80,sm120")
    placed = rounded(sidecar)
    assert all(quantize == 0 for quantize, _ in placed.values())
    assert placed["transformer"][1] == 5 * LAYERS + 1 and placed["decoder"][1] == products(sidecar["root"], "decoder")


def test_fp8_where_there_is_fp8(build: Build) -> None:
    sidecar = build("fp8", None)
    assert sidecar["targets"] == ["sm89", "sm120"]
    placed = rounded(sidecar)
    assert placed["transformer"] == (5 * LAYERS + 1, 2 * (5 * LAYERS + 1))
    assert placed["text_encoder"] == placed["context"] == placed["residual_condition"] == placed["decoder"] == (0, 0)
    root = sidecar["root"]
    with pytest.raises(InputError, match="target sm86 has no fp8"):
        build_bundle(Bundle(root), root.parent / "other", targets="sm86,sm89")
    assert not (root.parent / "other").exists()


def test_float32_around_the_integers_is_refused(w8a8_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is int8-w8a8 with fp32 floats; expected fp16\. Quantise the fp16 bundle"):
        build_bundle(Bundle(w8a8_root), tmp_path / "engines")
    with pytest.raises(InputError, match="is int8-w8a8; expected fp16"):
        build_bundle(Bundle(w8a8_root), tmp_path / "engines", precision="fp16")
