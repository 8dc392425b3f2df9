"""`hart::CachedAttention`: the NumPy truth against torch, and the ONNX function body against the NumPy truth."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from hart_edge.plugins import CACHED_ATTENTION, ONNX_FUNCTIONS
from hart_edge.plugins.cached_attention import cached_attention
from hart_edge.runtime.ort import OrtEngine

MODEL = """
<ir_version: 11, opset_import: ["" : 24, "hart" : 1]>
agraph (KIND[R, H, L, D] q, KIND[R, H, L, D] k, KIND[R, H, L, D] v, KIND[R, H, N, D] k_cache, KIND[R, H, N, D] v_cache,
        int64[R] position, int64[R] length)
    => (KIND[R, H, L, D] y, KIND[R, H, N, D] k_next, KIND[R, H, N, D] v_next)
{ y, k_next, v_next = hart.CachedAttention <scale = 0.07> (q, k, v, k_cache, v_cache, position, length) }
"""
SCALE = 0.07
KINDS = {"float32": "float", "float16": "float16"}


class Case(NamedTuple):
    """R rows, H heads, L new tokens, D head width, capacity of the cache, first new position."""

    rows: int
    heads: int
    new: int
    width: int
    capacity: int
    start: int


CASES = [Case(1, 1, 1, 4, 1, 0), Case(2, 3, 19, 32, 111, 0), Case(2, 3, 19, 32, 111, 92), Case(4, 2, 111, 64, 989, 300)]


def tensors_of(case: Case, dtype: str) -> dict[str, np.ndarray]:
    """The cache is filled beyond the valid prefix too: what lies there must not matter."""
    random = np.random.default_rng(case.new + case.start)
    new, cache = (case.rows, case.heads, case.new, case.width), (case.rows, case.heads, case.capacity, case.width)
    shapes = {"q": new, "k": new, "v": new, "k_cache": cache, "v_cache": cache}
    tensors = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    position = np.full(case.rows, case.start, np.int64)
    return tensors | {"position": position, "length": position + case.new}


def torch_attention(case: Case, t: dict[str, np.ndarray]) -> torch.Tensor:
    q, k, v = (torch.from_numpy(t[name].astype(np.float64)) for name in "qkv")
    before_k, before_v = (torch.from_numpy(t[name][:, :, : case.start].astype(np.float64)) for name in ("k_cache", "v_cache"))
    return F.scaled_dot_product_attention(q, torch.cat([before_k, k], 2), torch.cat([before_v, v], 2), scale=SCALE)


@pytest.fixture(scope="module", params=KINDS)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> OrtEngine:
    model = onnx.parser.parse_model(MODEL.replace("KIND", KINDS[dtype]))
    model.functions.append(onnx.parser.parse_function(CACHED_ATTENTION))
    path: Path = tmp_path_factory.mktemp("engine") / "attention.onnx"
    onnx.save(model, path)
    with OrtEngine(path, "attention") as engine:
        yield engine


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["float64", "float32", "float16"])
def test_numpy_truth_is_attention_over_the_valid_prefix(case: Case, precision: str) -> None:
    t = tensors_of(case, precision)
    y, _, _ = cached_attention(**t, scale=SCALE)
    assert y.dtype == precision
    assert_close(y, torch_attention(case, t), precision)


@pytest.mark.parametrize("case", CASES)
def test_numpy_truth_writes_only_the_new_positions_and_not_in_place(case: Case) -> None:
    t = tensors_of(case, "float32")
    before = {name: tensor.copy() for name, tensor in t.items()}
    _, k_next, v_next = cached_attention(**t, scale=SCALE)
    stop = case.start + case.new
    for updated, new, old in ((k_next, "k", "k_cache"), (v_next, "v", "v_cache")):
        np.testing.assert_array_equal(updated[:, :, case.start : stop], t[new])
        np.testing.assert_array_equal(updated[:, :, : case.start], t[old][:, :, : case.start])
        np.testing.assert_array_equal(updated[:, :, stop:], t[old][:, :, stop:])
        np.testing.assert_array_equal(t[old], before[old])


@pytest.mark.parametrize("case", CASES)
def test_onnx_body_follows_the_numpy_truth(engine: OrtEngine, dtype: str, case: Case) -> None:
    t = tensors_of(case, dtype)
    outputs = {"y": np.empty_like(t["q"]), "k_next": np.empty_like(t["k_cache"]), "v_next": np.empty_like(t["v_cache"])}
    engine.run(t, outputs)
    y, k_next, v_next = cached_attention(**t, scale=SCALE)
    assert_close(outputs["y"], y, dtype)
    np.testing.assert_array_equal(outputs["k_next"], k_next)
    np.testing.assert_array_equal(outputs["v_next"], v_next)


@pytest.mark.parametrize("case", CASES)
def test_onnx_body_updates_a_bound_cache_in_place(engine: OrtEngine, dtype: str, case: Case) -> None:
    t = tensors_of(case, dtype)
    y, k_next, v_next = cached_attention(**t, scale=SCALE)
    outputs = {"y": np.empty_like(t["q"]), "k_next": t["k_cache"], "v_next": t["v_cache"]}
    engine.run(t, outputs)
    assert_close(outputs["y"], y, dtype)
    np.testing.assert_array_equal(t["k_cache"], k_next)
    np.testing.assert_array_equal(t["v_cache"], v_next)


def test_two_steps_in_place_equal_one_attention_over_both(engine: OrtEngine, dtype: str) -> None:
    first = tensors_of(Case(2, 3, 19, 32, 111, 0), dtype)
    second = tensors_of(Case(2, 3, 7, 32, 111, 19), dtype)
    caches = {name: np.zeros_like(first[name]) for name in ("k_cache", "v_cache")}
    y = np.empty_like(second["q"])
    for step in (first, second):
        engine.run(step | caches, {"y": np.empty_like(step["q"]), "k_next": caches["k_cache"], "v_next": caches["v_cache"]})
    engine.run(second | caches, {"y": y})
    keys, values = (torch.from_numpy(np.concatenate([first[n], second[n]], axis=2).astype(np.float64)) for n in "kv")
    expected = F.scaled_dot_product_attention(torch.from_numpy(second["q"].astype(np.float64)), keys, values, scale=SCALE)
    assert_close(y, expected, dtype)


def test_content_beyond_the_valid_prefix_does_not_matter(engine: OrtEngine, dtype: str) -> None:
    case = Case(2, 3, 19, 32, 111, 50)
    t = tensors_of(case, dtype)
    results = []
    for filler in (0.0, np.inf):
        for name in ("k_cache", "v_cache"):
            t[name][:, :, case.start + case.new :] = filler
        y = np.empty_like(t["q"])
        engine.run(t, {"y": y})
        results.append(y)
    np.testing.assert_array_equal(*results)


def test_every_listed_function_is_valid_onnx() -> None:
    for text in ONNX_FUNCTIONS:
        function = onnx.parser.parse_function(text)
        assert function.domain == "hart"
        assert {opset.domain for opset in function.opset_import} == {""}
