"""FP8 weights as they are stored, laid out and refused; FP8 products against a truth in float64; who may run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from components import allocated, put, run
from emulated_scales import emulated_gpu
from pipelines import opened
from random_bundle import FP8_PRODUCTS, write_weights
from test_memory import SMALL, SPEC, draw, emulated, make_bundle
from tolerances import assert_close

from hart_edge.plugins import Buffer
from hart_edge.plugins.kernel import FP8
from hart_edge.plugins.quantize import Array, e4m3_codes, e4m3_values, quantize
from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.errors import BundleError, EngineError, InputError
from hart_edge.runtime.fused.blas import WORKSPACE
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.fp8 import Fp8Weight, load_weight
from hart_edge.runtime.fused.linear import Linear
from hart_edge.runtime.fused.memory_plan import plan_memory
from hart_edge.runtime.fused.model import ModelPlan
from hart_edge.runtime.fused.program import Program
from hart_edge.runtime.fused.upload import Uploader
from hart_edge.runtime.fused.weights import DeviceWeights, Weights, WeightsPlan
from hart_edge.runtime.fused.workspace import Memory

STEP = 0.05
"""The input's scale: normal numbers reach a fifth of its range."""
KINDS = {"uint8": "F8_E4M3", "float32": "F32", "float16": "F16", "int8": "I8"}
ALL = ("transformer", "diffusion", "text")


@cache
def codes_of(shape: tuple[int, ...], seed: int = 0) -> Array:
    return e4m3_codes(np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32) * 90)


def fp8(name: str, codes: Array, scale: float = 0.01, step: float = STEP) -> dict[str, Array]:
    """A quantised weight and its scales as they are stored."""
    return {name: codes, f"{name}.scale": np.array(scale, np.float32), f"{name}.input_scale": np.array([step], np.float32)}


def bundle_of(folder: Path, tensors: dict[str, Array]) -> Any:
    """A bundle of which only the weights are asked for."""
    write_weights(folder / "weights.safetensors", [(n, KINDS[a.dtype.name], a.shape) for n, a in tensors.items()], tensors.values())
    return SimpleNamespace(file=lambda name: folder / name)


@contextmanager
def on_device(context: FusedContext, folder: Path, tensors: dict[str, Array]) -> Iterator[Weights]:
    with DeviceWeights(bundle_of(folder, tensors), context) as weights:
        yield weights


@pytest.mark.parametrize("scales", [(0.01, 0.01), (0.01, 0.02)])
def test_stored_weights_lie_transposed_one_behind_the_other(context: FusedContext, tmp_path: Path, scales: tuple[float, float]) -> None:
    a, b = codes_of((48, 32)), codes_of((48, 16), 1)
    with on_device(context, tmp_path, fp8("a", a, scales[0]) | fp8("b", b, scales[1])) as weights:
        weight = load_weight(weights, "a", "b")
        assert isinstance(weight, Fp8Weight)
        codes = context.download(replace(weight.codes, dtype="uint8"))
        np.testing.assert_array_equal(codes, np.concatenate([a, b], axis=1).T)
        assert (weight.shape, weight.step) == ((48, 48), np.float32(STEP))
        whole = scales[0] == scales[1]
        assert [(part.start, part.stop) for part in weight.parts] == ([(0, 48)] if whole else [(0, 32), (32, 48)])
        stored = [float(context.download(part.scale)[0]) for part in weight.parts]
        np.testing.assert_array_equal(stored, np.float32(scales[:1] if whole else scales))
        np.testing.assert_array_equal(context.download(weight.input_scale), [np.float32(STEP)])
        assert weights.used == weights.names
        assert weights.fp8 == {"a", "b"}
        plan = WeightsPlan(bundle_of(tmp_path, fp8("a", a, scales[0]) | fp8("b", b, scales[1])))
        assert len(load_weight(plan, "a", "b").parts) == len(weight.parts)  # type: ignore[union-attr]
        assert plan.bytes == 48 * 48 + 256 * (1 + len(weight.parts))


def test_everything_arrives_beside_the_uploader(context: FusedContext, tmp_path: Path) -> None:
    """What is transposed goes its own way, between and at the same time as what the uploader's threads copy."""
    names = [f"w{i}" for i in range(6)]
    stored = {name: codes_of((256, 512), i) for i, name in enumerate(names)}
    plain = {f"{name}.bias": np.full(100_003, i, np.float16) for i, name in enumerate(names)}
    apart = [codes_of((64, 32), 7), codes_of((64, 16), 8)]
    tensors = {n: t for name in names for n, t in (fp8(name, stored[name]) | {f"{name}.bias": plain[f"{name}.bias"]}).items()}
    tensors |= fp8("a", apart[0], 0.5, 0.25) | fp8("b", apart[1], 2.0, 0.5)
    with ExitStack() as stack:
        with Uploader(context.device, workers=2, chunk=10_000) as uploader:
            weights = stack.enter_context(DeviceWeights(bundle_of(tmp_path, tensors), context, uploader=uploader))
            placed = [(weights[f"{name}.bias"], load_weight(weights, name)) for name in names]
            joined = load_weight(weights, "a", "b")
        weights.settle()
        for name, (bias, weight) in zip(names, placed, strict=True):
            assert isinstance(weight, Fp8Weight)
            np.testing.assert_array_equal(context.download(bias), plain[f"{name}.bias"])
            np.testing.assert_array_equal(context.download(replace(weight.codes, dtype="uint8")), stored[name].T)
            assert context.download(weight.parts[0].scale) == np.float32(0.01)
        values = [e4m3_values(codes) * scale for codes, scale in zip(apart, (0.5, 2.0), strict=True)]
        assert isinstance(joined, Buffer)
        np.testing.assert_array_equal(context.download(joined), np.concatenate(values, axis=1).astype(np.float16))


@pytest.mark.parametrize("rows", [1, 2, 7, 19, 300])
@pytest.mark.parametrize("sizes", [(64, (32,)), (192, (256, 256)), (1536, (4608,))])
@pytest.mark.parametrize(("bias", "residual"), [(False, False), (True, True), (False, True)])
def test_fp8_product(
    context: FusedContext, tmp_path: Path, rows: int, sizes: tuple[int, tuple[int, ...]], bias: bool, residual: bool
) -> None:
    """All parts, each with a scale of its own, against float64 on the values that the codes stand for."""
    inner, outers = sizes
    outer, scales = sum(outers), [0.002 * (i + 1) for i in range(len(outers))]
    stored = [codes_of((inner, width), i) for i, width in enumerate(outers)]
    rng = np.random.default_rng(rows)
    x = quantize(rng.standard_normal((rows, inner), np.float32), STEP, FP8)
    added, offset = (rng.standard_normal(shape, np.float32).astype(np.float16) for shape in ((rows, outer), (outer,)))
    tensors = {name: tensor for i, codes in enumerate(stored) for name, tensor in fp8(f"w{i}", codes, scales[i]).items()}

    def ask(memory: Memory) -> list[Buffer]:
        return [
            memory.buffer("x", x.shape, FP8),
            memory.buffer("y", added.shape, "float16"),
            memory.buffer("bias", offset.shape, "float16"),
        ]

    with on_device(context, tmp_path, tensors) as weights, allocated(context, ask) as (x_at, y_at, bias_at):
        weight = load_weight(weights, *(f"w{i}" for i in range(len(outers))))
        context.upload(replace(x_at, dtype="uint8"), x)
        put(context, bias_at, offset)
        put(context, y_at, added)
        layer = Linear(context.blas, rows, weight, bias_at if bias else None)
        run(context, lambda program: program.linear(layer, x_at, y_at, y_at if residual else None))
        real = np.concatenate(
            [e4m3_values(codes).astype(np.float64) * np.float32(s) for codes, s in zip(stored, scales, strict=True)], axis=1
        )
        want = (e4m3_values(x).astype(np.float64) * np.float32(STEP)) @ real + (offset if bias else 0) + (added if residual else 0)
        on_card = isinstance(context.device, Device)  # the emulated GPU adds up in float32
        assert_close(context.download(y_at), want.astype(np.float16), "fp8 product" if on_card else "float16")


def test_inputs_are_quantised_where_they_are_not_written_in_fp8(context: FusedContext, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((19, 48), np.float32).astype(np.float16)

    def ask(memory: Memory) -> list[Buffer]:
        return [memory.buffer(name, x.shape, "float16") for name in ("x", "spare")]

    with on_device(context, tmp_path, fp8("w", codes_of((48, 32)))) as weights, allocated(context, ask) as (x_at, spare):
        put(context, x_at, x)
        program = Program(context)
        weight = load_weight(weights, "w")
        given = program.quantized(weight, x_at, spare)
        assert program.quantized(Buffer(0, (48, 32), "float16"), x_at, spare) is x_at
        program.run()
        assert (given.address, given.dtype) == (spare.address, FP8)
        np.testing.assert_array_equal(context.download(replace(given, dtype="uint8")), quantize(x, STEP, FP8))


HALVES: dict[str, dict[str, Array]] = {
    "half": {**fp8("a", codes_of((16, 16))), "b": np.ones((16, 16), np.float16)},
    "inputs": fp8("a", codes_of((16, 16))) | fp8("b", codes_of((16, 16)), step=0.1),
    "sizes": fp8("a", codes_of((16, 24))) | fp8("b", codes_of((16, 16))),
}


@pytest.mark.parametrize("case", HALVES)
def test_what_cannot_be_one_fp8_product_is_one_of_float16(context: FusedContext, tmp_path: Path, case: str) -> None:
    """Weights that share an input of which one is not FP8, that quantise it differently, or that cuBLASLt does not take."""
    tensors = HALVES[case]
    plan = WeightsPlan(bundle_of(tmp_path, tensors))
    with on_device(context, tmp_path, tensors) as weights:
        loaded, planned = (load_weight(w, "a", "b") for w in (weights, plan))
        assert isinstance(loaded, Buffer)
        assert isinstance(planned, Buffer)
        assert (loaded.shape, loaded.dtype) == (planned.shape, planned.dtype) == ((16, 16 + tensors["a"].shape[1]), "float16")
        parts = [e4m3_values(t) * np.float32(0.01) if t.dtype == np.uint8 else t for t in (tensors["a"], tensors["b"])]
        np.testing.assert_array_equal(context.download(loaded), np.concatenate(parts, axis=1).astype(np.float16))
        assert weights.fp8 == set()
    with on_device(context, tmp_path, tensors) as weights:
        assert isinstance(load_weight(weights, "a", beside=["a", "b"]), Buffer)


WRONG: dict[str, tuple[dict[str, Array], str]] = {
    "zero": (fp8("a", codes_of((16, 16)), 0.0), r"a\.scale is float32 0\.0; expected one positive float32"),
    "infinite": (fp8("a", codes_of((16, 16)), step=np.inf), r"a\.input_scale is float32 inf; expected one positive float32"),
    "many": (
        fp8("a", codes_of((16, 16))) | {"a.scale": np.ones(16, np.float32)},
        r"a\.scale is float32 \[16\]; expected one positive float32",
    ),
    "missing": ({"a": codes_of((16, 16))}, r"has no tensor a\.input_scale"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_scales_are_named(tmp_path: Path, case: str) -> None:
    """Already by the plan, before anything is loaded."""
    tensors, message = WRONG[case]
    with pytest.raises(BundleError, match=message):
        load_weight(WeightsPlan(bundle_of(tmp_path, tensors)), "a")


def test_types_that_the_engine_does_not_compute_with_are_named(tmp_path: Path) -> None:
    """An EngineError: the backend `auto` goes on to one that runs such a bundle."""
    with pytest.raises(EngineError, match="holds w as I8; the engine `cuda` takes F16, F32, I64, F8_E4M3") as caught:
        WeightsPlan(bundle_of(tmp_path, {"w": np.zeros((16, 16), np.int8)}))["w"]
    assert "--backend ort-cuda or cpu" in caught.value.hint


def test_fp8_layers_write_float16(tmp_path: Path) -> None:
    weight = load_weight(WeightsPlan(bundle_of(tmp_path, fp8("w", codes_of((16, 32))))), "w")
    blas = emulated_gpu(1 << 16).blas
    assert Linear(blas, 3, weight).out == "float16"
    with pytest.raises(InputError, match=r"FP8 product of w .* to float32"):
        Linear(blas, 3, weight, out="float32")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("fp8") / "bundle", SPEC, SMALL, fp8=ALL)


@pytest.mark.parametrize("low_vram", [False, True])
def test_a_generation_takes_what_was_planned(small: Bundle, low_vram: bool) -> None:
    context, plan = emulated(), plan_memory(small, 2, low_vram)
    with opened(small, context, low_vram) as pipe:
        first = draw(pipe, 2)
        assert context.device.use.peak == plan.peak - WORKSPACE
        np.testing.assert_array_equal(draw(pipe, 2), first)


def test_fp8_weights_are_planned_as_bytes(small: Bundle, tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "bundle", SPEC, SMALL)
    products = sum(np.prod(shape) for name, shape in shapes_of(small).items() if name in ModelPlan(small).fp8)
    saved = sum(p.weights - q.weights for p, q in zip(plan_memory(plain).phases.values(), plan_memory(small).phases.values(), strict=True))
    scales = 2 * 256 * len(ModelPlan(small).fp8)
    assert products - scales < saved < products
    assert ModelPlan(plain).fp8 == set()


def shapes_of(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    weights = WeightsPlan(bundle)
    return {name: weights.shape(name) for name in weights.names}


def test_cards_without_fp8_are_told_before_anything_is_loaded(small: Bundle) -> None:
    context = emulated()
    context.device.info.capability = 86
    with pytest.raises(EngineError, match=r"need compute capability SM89 .*emulated GPU has SM86") as caught, opened(small, context):
        pass
    assert "fp16" in caught.value.hint
    assert context.device.use.peak == 0


def test_fp8_beside_float32_is_refused(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random_bundle._dtype", lambda name: np.dtype(np.float32))
    folder = small.root.with_name("wide")
    with pytest.raises(EngineError, match="FP8 weights beside float32 ones; expected float16"):
        ModelPlan(make_bundle(folder, SPEC, SMALL, fp8=ALL))


@pytest.mark.parametrize("part", ["head", "input", "time", "all but the last modulation"])
def test_stored_in_fp8_and_run_in_float16(small: Bundle, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """What has no FP8 product is dequantised, and what shares an input with it too; the rest stays FP8."""
    extra = {
        "head": r"transformer\.head\.weight",
        "input": r"residual_step\.input\.weight",
        "time": r"residual_step\.time_(first|second)\.weight",
        "all but the last modulation": r"residual_step\.layers\.\d+\.modulation\.weight",
    }[part]
    monkeypatch.setitem(FP8_PRODUCTS, "diffusion", r"residual_step\.layers\.\d+\.(first|second)\.weight|" + extra)
    bundle = make_bundle(small.root.with_name(part), SPEC, SMALL, fp8=("diffusion",))
    assert ModelPlan(bundle).fp8 == {f"residual_step.layers.0.{name}.weight" for name in ("first", "second")}
    with opened(bundle, emulated()) as pipe:
        assert draw(pipe).shape == (1, SPEC.image_size, SPEC.image_size, 3)
