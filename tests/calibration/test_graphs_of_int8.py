"""What is quantised in a graph and what is not, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors import safe_open

from hart_edge.runtime import Bundle
from hart_edge.runtime.bundle import folded_engines
from hart_edge.runtime.ort import UNWANTED, session_options

FLOAT_ENGINES = ("transition",)


def nodes(root: Path, engine: str) -> list[onnx.NodeProto]:
    return list(onnx.load(root / f"{engine}.onnx", load_external_data=False).graph.node)


def optimised(root: Path, engine: str, tmp_path: Path) -> Counter[str]:
    """Kinds of nodes that ONNX Runtime runs."""
    options = session_options(1, engine in folded_engines(root))
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(root / f"{engine}.onnx"), options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED)
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def test_activations_and_weights_of_the_transformer(w8a8_root: Path) -> None:
    graph = onnx.load(w8a8_root / "transformer.onnx", load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    stored = {t.name: t.data_type for t in graph.initializer}
    for layer in range(2):
        for part in ("qkv", "proj", "gate", "up", "down"):
            product = next(n for n in graph.node if n.op_type == "MatMul" and n.input[1].startswith(f"layers.{layer}.{part}."))
            weight, activation = makers[product.input[1]], makers.get(product.input[0])
            assert weight.op_type == "DequantizeLinear" and stored[weight.input[0]] == onnx.TensorProto.INT8
            rounded = activation is not None and activation.op_type == "DequantizeLinear"
            assert rounded == (f"{layer}.{part}" != "0.down")  # the one that was to be weight-only
            if rounded:
                assert activation is not None and makers[activation.input[0]].op_type == "QuantizeLinear"
                assert activation.input[1] == f"layers.{layer}.{part}.weight.input_scale"
    head = next(n for n in graph.node if n.op_type == "MatMul" and n.input[1].startswith("head."))
    assert makers[head.input[1]].op_type == "Cast" and stored["head.weight"] == onnx.TensorProto.FLOAT16  # float: at half the size


def test_attention_norms_and_the_transition_stay_float(w8a8_root: Path) -> None:
    graph = nodes(w8a8_root, "transformer")
    makers = {name: node for node in graph for name in node.output}
    for node in graph:
        if node.op_type in ("CachedAttention", "RMSNormalization", "Sigmoid"):
            assert not any(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input)
    assert not [n for n in nodes(w8a8_root, "transition") if "Quantize" in n.op_type]


def test_the_decoder_has_weights_of_8_bits_and_nothing_else(w8a8_root: Path) -> None:
    kinds = Counter(node.op_type for node in nodes(w8a8_root, "decoder"))
    assert kinds["DequantizeLinear"] == kinds["Conv"] > 20 and not kinds["QuantizeLinear"]
    assert folded_engines(w8a8_root) == ("decoder",)


def test_onnx_runtime_computes_in_integers(w8a8_root: Path, tmp_path: Path) -> None:
    kinds = optimised(w8a8_root, "transformer", tmp_path)
    assert kinds["MatMulIntegerToFloat"] == 9  # two layers of five, one of them weight-only
    assert kinds["MatMulNBits"] == 1 and not kinds["DequantizeLinear"]
    residual = optimised(w8a8_root, "residual_step", tmp_path)
    products = sum(node.op_type == "MatMul" for node in nodes(w8a8_root, "residual_step"))
    assert residual["MatMulIntegerToFloat"] == products and not residual["DequantizeLinear"]


def test_onnx_runtime_keeps_8_bits_and_folds_convolutions(weight_only_root: Path, tmp_path: Path) -> None:
    transformer = optimised(weight_only_root, "transformer", tmp_path)
    assert transformer["MatMulNBits"] == 11 and not transformer["DequantizeLinear"]
    decoder = optimised(weight_only_root, "decoder", tmp_path)
    assert not decoder["DequantizeLinear"] and decoder["ReorderInput"]  # convolutions in blocks, as of float weights


def test_the_weights_file(w8a8_root: Path, bundle_root: Path) -> None:
    with (
        safe_open(w8a8_root / "weights.safetensors", framework="pt") as file,
        safe_open(bundle_root / "weights.safetensors", framework="pt") as source,
    ):
        names = set(file.keys())
        assert set(source.keys()) <= names
        offsets = [file.get_tensor(name).element_size() for name in file.offset_keys()]
        assert offsets == sorted(offsets, reverse=True)  # every tensor starts at a multiple of its element size
        weight, scale = file.get_tensor("transformer.layers.1.qkv.weight"), file.get_tensor("transformer.layers.1.qkv.weight.scale")
        assert weight.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (weight.shape[1],)
        assert file.get_tensor("transformer.layers.1.qkv.weight.input_scale").shape == ()
        assert "transformer.layers.0.down.weight.input_scale" not in names
        gate, up = (file.get_tensor(f"transformer.layers.1.{part}.weight.input_scale") for part in ("gate", "up"))
        assert torch.equal(gate, up)  # they read one tensor


def test_a_quantised_bundle_is_small(w8a8_root: Path, weight_only_root: Path, bundle_root: Path) -> None:
    whole = Bundle(bundle_root).manifest.files["weights.safetensors"].bytes
    for root in (w8a8_root, weight_only_root):
        assert Bundle(root).manifest.files["weights.safetensors"].bytes < 0.30 * whole


def test_graphs_are_valid(w8a8_root: Path) -> None:
    for engine in Bundle(w8a8_root).manifest.engines:
        graph = onnx.load(w8a8_root / f"{engine}.onnx", load_external_data=False).graph
        known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
        for node in graph.node:
            assert set(node.input) <= known, f"{engine}: {node.name} reads what comes later"
            known |= set(node.output)


@pytest.mark.parametrize("engine", ["transformer", "residual_step"])
def test_a_weight_comes_back_as_it_was(engine: str, w8a8_root: Path, bundle_root: Path) -> None:
    """Stored · scale is within a step of the source's weight, migration undone."""
    with safe_open(w8a8_root / "weights.safetensors", "pt") as file, safe_open(bundle_root / "weights.safetensors", "pt") as source:
        name = {"transformer": "transformer.layers.1.down.weight", "residual_step": "residual_step.input.weight"}[engine]
        scale = file.get_tensor(f"{name}.scale")
        real = file.get_tensor(name).float() * scale
        rows = file.get_tensor(f"{name}.rows") if f"{name}.rows" in file.keys() else torch.zeros(len(real))  # noqa: SIM118
        want = source.get_tensor(name) * torch.exp2(rows.float())[:, None]
        assert np.all(np.abs((real - want).numpy()) <= scale.numpy() * 1.001)
