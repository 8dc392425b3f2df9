"""The bundled model's weights on the (emulated) GPU: every stored tensor is used, none is missing, what is joined is right."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_scales import emulated_gpu

from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.errors import BundleError, InputError
from hart_edge.runtime.fused.model import FusedModel
from hart_edge.runtime.fused.stages import DecoderStage


@pytest.fixture(scope="module")
def model() -> FusedModel:
    return FusedModel(emulated_gpu(), Bundle(bundled_folder(), check_files=False))


def test_every_stored_tensor_is_used_and_none_is_missing(model: FusedModel) -> None:
    DecoderStage(model)._prepare(1)  # the decoder takes its weights when its work is put together
    not_needed = {name for name in model.weights.names if name.endswith((".one", ".zero"))}  # of InstanceNormalization in the graph
    assert model.weights.names - model.weights.used == not_needed
    assert model.weights.used <= model.weights.names


def test_gate_and_up_are_one_product(model: FusedModel) -> None:
    layer = model.transformer.layers[3]
    gate, up = (model.weights.host(f"transformer.layers.3.{name}.weight") for name in ("gate", "up"))
    np.testing.assert_array_equal(model.context.download(layer.gate_up), np.concatenate([gate, up], axis=1))
    bias = model.weights.host("transformer.layers.3.qkv.bias")
    np.testing.assert_array_equal(model.context.download(layer.v_bias), bias[-model.spec.width :])
    np.testing.assert_array_equal(model.context.download(layer.q_bias), bias[: model.spec.width])


def test_a_missing_tensor_and_a_name_taken_twice_are_named(model: FusedModel) -> None:
    with pytest.raises(BundleError, match=r"has no tensor nothing\.weight"):
        model.weights["nothing.weight"]
    assert model.weights.maybe("nothing.weight") is None
    with pytest.raises(InputError, match=r"fused\.head\.bias is on the device already"):
        model.weights.put("fused.head.bias", np.zeros(3, np.float32))
