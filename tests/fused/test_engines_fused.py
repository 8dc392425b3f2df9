"""Every engine of the fused backend against the CPU's on the bundled model, with random inputs: verify's view of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hart_edge.plugins.quantize import Array
from hart_edge.runtime.engine import DeviceTensor
from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.fused.loop import FusedLoop
from hart_edge.runtime.kv_cache import KVCache
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.spec import UNCONDITIONAL_K, UNCONDITIONAL_V
from hart_edge.runtime.transformer import Conditioning, TransformerRun

BATCH = 2
WORST = {"float16": 2e-2, "float32": 2e-4}
"""‖difference‖ / ‖expected‖ between two engines in float16: each layer rounds several times, in different places."""


def random(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


def compare(cpu: Pipeline, fused: Pipeline, name: str, inputs: dict[str, Array], shapes: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """Relative error of every output."""
    results = []
    for pipe in (cpu, fused):
        engine = pipe.engines[name]
        outputs = {key: np.zeros(shape, engine.outputs[key].dtype) for key, shape in shapes.items()}
        engine.run({key: value.copy() for key, value in inputs.items()}, outputs)
        results.append(outputs)
    return {key: error(results[1][key], results[0][key]) for key in shapes}


def error(actual: Array, expected: Array) -> float:
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(a).all()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_backend_brings_its_own_loop(fused: Pipeline) -> None:
    assert fused.backend == "cuda"
    assert isinstance(fused.loop, FusedLoop)


def test_text_encoder(cpu: Pipeline, fused: Pipeline) -> None:
    spec = cpu.spec
    ids = np.random.default_rng(0).integers(1, 500, (3, spec.context_tokens))
    mask = (np.arange(spec.context_tokens) < np.array([[spec.context_tokens], [7], [0]])).astype(np.int64)  # full, padded, empty
    shape = {"context": (3, spec.context_tokens, spec.context_dim)}
    assert compare(cpu, fused, "text_encoder", {"input_ids": ids * mask, "attention_mask": mask}, shape)["context"] < WORST["float16"]


def test_context(cpu: Pipeline, fused: Pipeline) -> None:
    spec = cpu.spec
    shapes = {"x": (BATCH, spec.context_tokens, spec.width), **{name: (2 * BATCH, 1, spec.width) for name in ("head_scale", "head_shift")}}
    inputs = {"context": random((BATCH, spec.context_tokens, spec.context_dim), np.float16)}
    assert max(compare(cpu, fused, "context", inputs, shapes).values()) < WORST["float16"]


def test_transformer_over_all_scales(cpu: Pipeline, fused: Pipeline) -> None:
    """With the same inputs at every scale: hidden, logits, and the caches that both engines have written."""
    spec = cpu.spec
    positions = np.tile(np.arange(spec.context_tokens), (BATCH, 1))
    positions[1, 9:] = 8
    head = {name: random((2 * BATCH, 1, spec.width), np.float16, i, 0.3) for i, name in enumerate(("head_scale", "head_shift"))}
    runs = []
    for pipe in (cpu, fused):
        own = {name: pipe.memory.upload(value) for name, value in head.items()}
        runs.append(TransformerRun(pipe.loop.transformer, positions, own))
    for scale in range(spec.scales):
        rows = BATCH if scale == 0 else 2 * BATCH
        x = random((rows, spec.input_tokens(scale), spec.width), np.float16, scale)
        results = [run.step(scale, pipe.memory.upload(x)) for run, pipe in zip(runs, (cpu, fused), strict=True)]
        for want, got in zip(results[0], results[1], strict=True):
            assert error(fused.memory.download(got), cpu.memory.download(want)) < WORST["float16"], f"scale {scale}"


def test_transformer_takes_arrays(cpu: Pipeline, fused: Pipeline) -> None:
    """Arrays as caches, updated in place, as without a device memory."""
    spec = cpu.spec
    tokens, results = spec.context_tokens, []
    constants = cpu.bundle.constants(UNCONDITIONAL_K, UNCONDITIONAL_V)
    for pipe in (cpu, fused):
        cache = KVCache(spec, 1, np.dtype(np.float16), constants[UNCONDITIONAL_K], constants[UNCONDITIONAL_V])
        bound_in, bound_out = cache.bindings(1)
        inputs = {
            "x": random((1, tokens, spec.width), np.float16),
            **{name: random((1, 1, tokens, spec.head_dim), np.float16, seed) for seed, name in enumerate(("rope_cos", "rope_sin"))},
            **{name: random((1, 1, spec.width), np.float16, 7) for name in ("head_scale", "head_shift")},
            "position": np.zeros(1, np.int64),
            "length": np.full(1, tokens),
            **bound_in,
        }
        hidden = np.empty((1, tokens, spec.width), np.float16)
        pipe.engines["transformer"].run(inputs, {"hidden": hidden, **bound_out})
        results.append([hidden, *(np.asarray(value) for value in bound_in.values())])
    assert max(error(got, want) for want, got in zip(*results, strict=True)) < WORST["float16"]


def test_transition(cpu: Pipeline, fused: Pipeline) -> None:
    spec, z = cpu.spec, cpu.spec.latent_channels
    for scale in (0, 4, spec.scales - 2):
        h = random((BATCH, z, spec.patch_nums[scale], spec.patch_nums[scale]), seed=scale)
        f_hat = random((BATCH, z, spec.grid, spec.grid), seed=1)
        results = [pipe.loop.transition.step(scale, pipe.memory.upload(h), pipe.memory.upload(f_hat)) for pipe in (cpu, fused)]
        for i, worst in enumerate((1e-5, 2e-3)):  # x is rounded to float16
            assert error(fused.memory.download(results[1][i]), cpu.memory.download(results[0][i])) < worst


def test_residual_condition(cpu: Pipeline, fused: Pipeline) -> None:
    spec, cells = cpu.spec, cpu.spec.grid**2
    index = np.random.default_rng(0).integers(0, spec.codebook_size, (BATCH, cells))
    inputs = {"hidden": random((2 * BATCH, cells, spec.width), np.float16), "index": index}
    shapes = {"condition": (2 * BATCH * cells, spec.diffusion_width)}
    assert compare(cpu, fused, "residual_condition", inputs, shapes)["condition"] < WORST["float16"]


def test_residual_step(cpu: Pipeline, fused: Pipeline) -> None:
    spec, count = cpu.spec, BATCH * cpu.spec.grid**2
    inputs = {
        "x": random((count, spec.latent_channels)),
        "condition": random((2 * count, spec.diffusion_width), np.float16),
        "timestep": np.array([428], np.float32),
        "coefficients": np.array([1.3, 0.8, 0.4, 0.5, -1.0, -1.5, 1.0, 0.7], np.float32),
        "noise": random((count, spec.latent_channels), seed=3),
    }
    shapes = {"x_next": (count, spec.latent_channels), "prediction": (count, 2 * spec.latent_channels)}
    assert max(compare(cpu, fused, "residual_step", inputs, shapes).values()) < WORST["float16"]


def test_decoder(cpu: Pipeline, fused: Pipeline) -> None:
    spec, side = cpu.spec, cpu.spec.image_size
    f_hat = random((BATCH, spec.latent_channels, spec.grid, spec.grid))
    shapes = {"image": (BATCH, side, side, 3), "decoded": (BATCH, 3, side, side)}
    errors = compare(cpu, fused, "decoder", {"f_hat": f_hat}, shapes)
    assert max(errors.values()) < WORST["float16"], errors


def test_wrong_calls_are_named(fused: Pipeline) -> None:
    spec = fused.spec
    with pytest.raises(EngineError, match="inputs missing"):
        fused.engines["context"].run({}, {})
    with pytest.raises(EngineError, match=r"f_hat.*was given shape"):
        fused.engines["decoder"].run({"f_hat": np.zeros((1, 3, 2, 2), np.float32)}, {"image": np.zeros((1, 8, 8, 3), np.uint8)})
    device = fused.memory.empty((1, spec.latent_channels, spec.grid, spec.grid), np.float32)
    assert isinstance(device, DeviceTensor)


def test_conditioning_may_be_an_array(fused: Pipeline) -> None:
    spec = fused.spec
    hidden = random((1, spec.context_tokens, spec.context_dim))
    x, head = fused.loop.transformer.embed(Conditioning(hidden, np.zeros((1, spec.context_tokens), np.int64)))
    assert np.isfinite(fused.memory.download(x)).all()
    assert set(head) == {"head_scale", "head_shift"}
