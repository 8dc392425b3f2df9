"""The bundled model's weights on the (emulated) GPU: every stored tensor is used, none is missing, what is joined is right."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_scales import emulated_gpu
from safetensors import safe_open

from hart_edge.runtime.bundle import WEIGHTS, Bundle, bundled_folder
from hart_edge.runtime.errors import BundleError, InputError
from hart_edge.runtime.fused import decoder
from hart_edge.runtime.fused.model import FusedModel, ModelPlan


@pytest.fixture(scope="module")
def model() -> FusedModel:
    return FusedModel(emulated_gpu(), Bundle(bundled_folder(), check_files=False))


def test_every_stored_tensor_is_used_and_none_is_missing(model: FusedModel) -> None:
    parts = [part for part in (model.text, model.generator, model.decoder) if part is not None]
    used, names = set().union(*(part.plan.used for part in parts)), model.decoder.get().names
    assert {name for name in names - used if not name.endswith((".one", ".zero"))} == set()  # of InstanceNormalization in the graph
    assert used <= names
    assert len(parts) == 3


def test_gate_and_up_are_one_product(model: FusedModel) -> None:
    layer, stored = model.generator.get().transformer.layers[3], model.decoder.get()
    gate, up = (stored.host(f"transformer.layers.3.{name}.weight") for name in ("gate", "up"))
    np.testing.assert_array_equal(model.context.download(layer.gate_up), np.concatenate([gate, up], axis=1))
    bias = stored.host("transformer.layers.3.qkv.bias")
    np.testing.assert_array_equal(model.context.download(layer.v_bias), bias[-model.spec.width :])
    np.testing.assert_array_equal(model.context.download(layer.q_bias), bias[: model.spec.width])


def test_a_missing_tensor_and_a_name_taken_twice_are_named(model: FusedModel) -> None:
    weights = model.decoder.get()
    with pytest.raises(BundleError, match=r"has no tensor nothing\.weight"):
        weights["nothing.weight"]
    assert weights.maybe("nothing.weight") is None
    with pytest.raises(InputError, match=r"decoder\.post_quant_conv\.bias is on the device already"):
        weights.put("decoder.post_quant_conv.bias", np.zeros(3, np.float32))


def test_planning_makes_nothing_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phases' kernels are sums over whole tensors: only their shape is asked for."""

    def refuse(weight: np.ndarray) -> np.ndarray:
        raise AssertionError("a transform was computed")

    monkeypatch.setattr(decoder, "phase_kernels", refuse)
    assert ModelPlan(Bundle(bundled_folder(), check_files=False)).decoder.bytes > 0


def test_a_tensor_is_what_the_file_says(model: FusedModel) -> None:
    """The mapped file against safetensors' own reading, every tensor."""
    weights = model.decoder.get()
    with safe_open(model.bundle.file(WEIGHTS), framework="numpy") as file:
        for name in weights.names:
            np.testing.assert_array_equal(weights.host(name), file.get_tensor(name))
