"""Device memory of whole generations: planned to the byte, spared with low_vram, flat over many pictures, and when it runs out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulated_scales import emulated_gpu
from pipelines import KINDS, opened
from random_bundle import HART_1024, RELEASED, Sizes, make_bundle, make_hollow_bundle
from typer.testing import CliRunner

from hart_edge.runtime.backends import candidates
from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.cli.app import app
from hart_edge.runtime.errors import EngineError, GpuMemoryError, InputError
from hart_edge.runtime.fused.blas import WORKSPACE
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.memory_plan import plan_memory
from hart_edge.runtime.fused.model import ModelPlan
from hart_edge.runtime.pipeline import Pipeline

SPEC = replace(
    HART_1024,
    patch_nums=(1, 2, 3),
    phi_index=(0, 1),
    context_tokens=16,
    context_dim=64,
    depth=2,
    width=64,
    heads=1,
    codebook_size=128,
    latent_channels=8,
    diffusion_width=32,
    diffusion_steps=2,
    downsample=2,
)
SMALL = Sizes(64, 1, 32, (1, 1), text_layers=2, text_heads=2, text_hidden=64, text_head_dim=32, text_kv_heads=1)
PROMPTS = ["two red circles", "a small green star"]
LOW = pytest.mark.parametrize("low_vram", [False, True])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("small") / "bundle", SPEC, SMALL)


def emulated() -> FusedContext:
    return emulated_gpu(64 << 20)


def draw(pipe: Pipeline, batch: int = 1) -> np.ndarray:
    images = pipe.generate_batch(PROMPTS[:batch], seeds=list(range(batch)))
    return np.stack([np.asarray(image) for image in images])


@LOW
@pytest.mark.parametrize("batch", [1, 2])
def test_a_generation_takes_what_was_planned(bundle: Bundle, low_vram: bool, batch: int) -> None:
    """The emulated card has no scratch for cuBLASLt; all else is counted to the byte."""
    context, plan = emulated(), plan_memory(bundle, batch, low_vram)
    with opened(bundle, context, low_vram) as pipe:
        assert draw(pipe, batch).shape == (batch, SPEC.image_size, SPEC.image_size, 3)
        assert context.device.use.peak == plan.peak - WORKSPACE


def test_low_vram_draws_the_same_pictures_and_keeps_nothing(bundle: Bundle) -> None:
    context = emulated()
    with opened(bundle, emulated()) as pipe:
        wanted = draw(pipe, 2)
    with opened(bundle, context, low_vram=True) as pipe:
        assert context.device.use.bytes == 0
        for _ in range(2):
            np.testing.assert_array_equal(draw(pipe, 2), wanted)
            pipe.memory.trim()  # type: ignore[attr-defined]
            assert context.device.use.bytes == 0


def test_low_vram_needs_less(bundle: Bundle) -> None:
    plans = [plan_memory(bundle, 1, low_vram) for low_vram in (False, True)]
    assert plans[1].peak < plans[0].peak
    assert [plan.phases for plan in plans] == [plans[0].phases] * 2
    assert plans[0].in_use["decoder"] == plans[0].peak


def test_low_vram_previews_and_a_run_that_was_given_up(bundle: Bundle) -> None:
    context = emulated()
    with opened(bundle, context, low_vram=True) as pipe:
        first = pipe.stream(PROMPTS[0], seed=1)
        assert next(first).preview().size == (SPEC.image_size,) * 2
        second = pipe.stream(PROMPTS[0], seed=2)
        next(second)
        with pytest.raises(EngineError, match="another generation"):
            next(first)
        assert next(second).scale == 1
        second.close()
        del first, second
        pipe.memory.trim()  # type: ignore[attr-defined]
        assert context.device.use.bytes == 0


@LOW
@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.gpu)])
def test_pictures_leave_memory_flat(request: pytest.FixtureRequest, bundle: Bundle, low_vram: bool, kind: str) -> None:
    """The device's own allocations are counted: other programs change what is free on a card."""
    real = kind == KINDS[1]
    context = request.getfixturevalue("gpu_context") if real else emulated()
    source = Bundle(bundled_folder(), check_files=False) if real else bundle
    with opened(source, context, low_vram) as pipe:
        taken = []
        for _ in range(20 if real else 3):
            draw(pipe)
            taken.append((context.device.use.bytes, 0 if low_vram else context.device.use.allocations))
    assert len(set(taken[1:])) == 1, taken


def test_what_does_not_fit_is_named_and_the_process_goes_on(bundle: Bundle) -> None:
    context, plan = emulated(), plan_memory(bundle, 1)
    vars(context)["memory"].limit = plan.phases["text encoder"].weights
    wanted = "too little GPU memory for the weights of the transformer and the diffusion"
    with pytest.raises(GpuMemoryError, match=wanted) as caught, opened(bundle, context):
        pass
    assert "are free" in caught.value.message
    assert all(remedy in caught.value.hint for remedy in ("--low-vram", "smaller batch", "CPU", "bench --plan"))
    assert context.device.use.bytes == 0
    vars(context)["memory"].limit = plan_memory(bundle, 1, low_vram=True).peak - WORKSPACE
    with opened(bundle, context, low_vram=True) as pipe:
        picture = draw(pipe)
        with pytest.raises(GpuMemoryError, match=r"for the (scale loop|decoder)"):
            draw(pipe, 2)
        np.testing.assert_array_equal(draw(pipe), picture)


def test_a_batch_that_does_not_fit_leaves_the_model_usable(bundle: Bundle) -> None:
    context = emulated()
    vars(context)["memory"].limit = plan_memory(bundle, 1).peak - WORKSPACE + (8 << 10)  # room for the larger batch's prompts
    with opened(bundle, context) as pipe:
        picture = draw(pipe)
        with pytest.raises(GpuMemoryError, match="for the"):
            draw(pipe, 2)
        np.testing.assert_array_equal(draw(pipe), picture)


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes there by default, and this one would take 4 GB")
def test_released_model_is_planned_without_reading_it(tmp_path: Path) -> None:
    bundle = make_hollow_bundle(tmp_path / "bundle", HART_1024, RELEASED)
    plan, model = plan_memory(bundle, low_vram=True), ModelPlan(bundle)
    stored = (bundle.root / "weights.safetensors").stat().st_size
    planned = sum(phase.weights for phase in plan.phases.values())
    assert abs(planned / stored - 1) < 0.02  # word embeddings of the diffusion come in addition
    assert model.dtype == "float16"
    assert plan.scale_loop["lasting"] > 2 * 2 * 24 * HART_1024.cache_length * HART_1024.width * 2  # keys and values of both halves
    assert plan.peak_phase == "scale loop"
    assert plan.peak < 5 << 30 < plan_memory(bundle).peak


@LOW
def test_bench_prints_the_plan(low_vram: bool) -> None:
    arguments = ["bench", "--plan", "--batch", "1,2", *(["--low-vram"] if low_vram else [])]
    result = CliRunner().invoke(app, [*arguments, "--json", "-"])
    assert result.exit_code == 0
    plans = json.loads(result.stdout)["plans"]
    bundle = Bundle(bundled_folder(), check_files=False)
    assert [plan["peak"] for plan in plans] == [plan_memory(bundle, batch, low_vram).peak for batch in (1, 2)]
    shown = CliRunner().invoke(app, arguments).stdout
    assert all(f"{plan['peak'] / 2**20:.1f} MiB" in shown for plan in plans)


def test_low_vram_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(InputError, match="ort-cuda was asked to spare GPU memory"):
        candidates("ort-cuda", low_vram=True)
    assert candidates("cpu", low_vram=True) == ("cpu",)
    assert "ort-cuda" not in candidates("auto", low_vram=True)
