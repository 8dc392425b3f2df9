"""The runtime on an exported bundle: pictures, streaming, previews, cancelling, batches, options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hart_edge.runtime import Bundle, HartWarning, InputError, Options, Pipeline, StageTimes
from hart_edge.runtime.kv_cache import KVCaches
from hart_edge.runtime.spec import UNCONDITIONAL_K, UNCONDITIONAL_V, cache_names

PROMPTS = ["a lighthouse at dusk", "two red circles above a blue square, oil painting", "", "שלום 🌅 مرحبا"]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_generate_gives_an_rgb_picture_with_its_recipe(pipe: Pipeline) -> None:
    image = pipe.generate("a lighthouse at dusk", seed=7, options=Options(cfg=3.0))
    assert (image.mode, image.size) == ("RGB", (pipe.spec.image_size,) * 2)
    recipe = json.loads(image.info["hart-edge"])
    assert (recipe["prompt"], recipe["seed"], recipe["settings"]["cfg"]) == ("a lighthouse at dusk", 7, 3.0)
    assert recipe["settings"]["diffusion_steps"] == 8


def test_same_seed_same_picture_other_seed_another(pipe: Pipeline) -> None:
    first, again, other = (pixels(pipe.generate("a tree", seed=seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_prompt_matters(pipe: Pipeline) -> None:
    assert not np.array_equal(*(pixels(pipe.generate(prompt, seed=1)) for prompt in PROMPTS[:2]))


def test_loading_again_gives_the_same_picture(pipe: Pipeline, bundle_root: Path) -> None:
    with Pipeline.open(Bundle(bundle_root)) as other:
        assert np.array_equal(pixels(other.generate("a tree", seed=5)), pixels(pipe.generate("a tree", seed=5)))


def test_every_picture_of_a_batch_is_the_picture_made_alone(pipe: Pipeline) -> None:
    together = pipe.generate_batch(PROMPTS, seeds=[11, 12, 13, 14])
    alone = [pipe.generate(prompt, seed=seed) for prompt, seed in zip(PROMPTS, [11, 12, 13, 14], strict=True)]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(together, alone, strict=True))


def test_stream_yields_every_scale_and_ends_with_the_picture(pipe: Pipeline) -> None:
    steps = list(pipe.stream("a tree", seed=2))
    assert [step.patch_num for step in steps] == list(pipe.spec.patch_nums)
    assert [step.images is None for step in steps] == [True] * (len(steps) - 1) + [False]
    assert np.array_equal(pixels(steps[-1].preview()), pixels(pipe.generate("a tree", seed=2)))


def test_steps_keep_their_latents_after_the_run_went_on(pipe: Pipeline) -> None:
    kept, early = [], []
    for step in pipe.stream("a tree", seed=2):
        kept.append(step)
        early.append(step.f_hat.copy())
    assert all(np.array_equal(step.f_hat, copy) for step, copy in zip(kept, early, strict=True))


def test_preview_is_a_picture_of_the_scale(pipe: Pipeline) -> None:
    steps = list(pipe.stream(PROMPTS[:2], seed=2))
    previews = [step.previews() for step in steps]
    assert {len(images) for images in previews} == {2}
    assert {image.size for images in previews for image in images} == {(pipe.spec.image_size,) * 2}
    assert not np.array_equal(pixels(previews[0][0]), pixels(previews[-1][0]))


def test_previews_do_not_change_the_picture(pipe: Pipeline) -> None:
    for step in pipe.stream("a tree", seed=2):
        image = step.preview()
    assert np.array_equal(pixels(image), pixels(pipe.generate("a tree", seed=2)))


def test_closing_the_stream_cancels_and_leaves_the_pipeline_usable(pipe: Pipeline) -> None:
    before = pixels(pipe.generate("a tree", seed=9))
    stream = pipe.stream("another", seed=1)
    assert next(stream).scale == 0
    stream.close()
    assert list(stream) == []
    assert np.array_equal(pixels(pipe.generate("a tree", seed=9)), before)


def test_two_streams_at_once_are_kept_apart(pipe: Pipeline) -> None:
    """Every batch under way has a cache of its own."""
    want = [pixels(pipe.generate(prompt, seed=1)) for prompt in ("a tree", "a boat")]
    both = [pipe.stream(prompt, seed=1) for prompt in ("a tree", "a boat")]
    *_, last = zip(*both, strict=True)
    assert all(np.array_equal(pixels(step.preview()), image) for step, image in zip(last, want, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        Options(cfg=0),
        Options(cfg=1.0),
        Options(top_k=1),
        Options(top_p=0.9),
        Options(smooth=False),
        Options(diffusion_steps=1),
        Options(residual=False),
    ],
    ids=repr,
)
def test_every_option_runs_and_changes_the_picture(pipe: Pipeline, options: Options) -> None:
    assert not np.array_equal(pixels(pipe.generate("a tree", seed=6, options=options)), pixels(pipe.generate("a tree", seed=6)))


def test_top_k_above_the_codebook_keeps_all(pipe: Pipeline) -> None:
    size = pipe.spec.codebook_size
    all_codes, more = (pixels(pipe.generate("a tree", seed=6, options=Options(top_k=k))) for k in (size, 10 * size))
    assert np.array_equal(all_codes, more)


def test_without_guidance_the_unconditional_rows_do_not_matter(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """cfg 0 must give the plain conditional distribution: garbage in the unconditional constants changes nothing."""
    want = pixels(pipe.generate("a tree", seed=6, options=Options(cfg=0)))
    transformer, constants = pipe.loop.transformer, pipe.bundle.constants(UNCONDITIONAL_K, UNCONDITIONAL_V)
    garbage = KVCaches(pipe.spec, transformer.engine.inputs["x"].dtype, constants[UNCONDITIONAL_K] + 1, constants[UNCONDITIONAL_V])
    monkeypatch.setattr(transformer, "caches", garbage)
    assert np.array_equal(pixels(pipe.generate("a tree", seed=6, options=Options(cfg=0))), want)
    assert not np.array_equal(pixels(pipe.generate("a tree", seed=6)), pixels(pipe.generate("a tree", seed=6, options=Options(cfg=0))))


def test_cache_is_written_in_place(pipe: Pipeline) -> None:
    """The engine's output is the very buffer of its input: after a step the caller's array holds the new keys."""
    loop = pipe.loop
    conditioning = pipe.encode_text(["a tree"])
    run, x = loop.transformer.begin(conditioning)
    inputs, outputs = run.cache.bindings(2)
    tokens = pipe.spec.context_tokens
    for layer in range(pipe.spec.depth):
        k_in, v_in, k_out, v_out = cache_names(layer)
        assert outputs[k_out] is inputs[k_in] or outputs[k_out].ctypes.data == inputs[k_in].ctypes.data
        assert outputs[v_out].ctypes.data == inputs[v_in].ctypes.data
        assert not inputs[k_in][0].any()
    run.step(0, x)
    for layer in range(pipe.spec.depth):
        k = inputs[cache_names(layer)[0]]
        assert k[0, :, :tokens].any(axis=-1).all()
        assert not k[0, :, tokens:].any()


def test_long_prompt_is_truncated_with_a_warning_that_shows_the_rest(pipe: Pipeline) -> None:
    with pytest.warns(HartWarning, match="16 tokens; dropped: .*lights"):
        image = pipe.generate("a lighthouse at dusk by the sea in heavy rain on a wooden table under northern lights", seed=1)
    assert image.size == (pipe.spec.image_size,) * 2


@pytest.mark.parametrize("prompt", ["", "שלום עולם", "🌅🦜", "line\nbreak", "a" * 5000])
@pytest.mark.filterwarnings("ignore::hart_edge.runtime.HartWarning")
def test_unusual_prompts_draw(pipe: Pipeline, prompt: str) -> None:
    assert json.loads(pipe.generate(prompt).info["hart-edge"])["prompt"] == prompt


def test_no_prompts_and_wrong_seed_count_are_errors(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="no prompts"):
        pipe.generate_batch([], seeds=[])
    with pytest.raises(InputError, match="1 seeds for 2 prompts"):
        pipe.stream(["a", "b"], seeds=[1])


def test_stage_times_cover_the_run(pipe: Pipeline) -> None:
    times = StageTimes()
    pipe.generate("a tree", times=times)
    assert set(times.seconds) == {"text_encoder", "context", "transformer", "sampling", "transition", "residual", "decoder"}
    assert times.total > 0


def test_fp16_bundle_draws(bundle_root_fp16: Path) -> None:
    with Pipeline.open(Bundle(bundle_root_fp16)) as half:
        image = half.generate("a tree", seed=1)
    assert json.loads(image.info["hart-edge"])["precision"] == "fp16"
    assert pixels(image).std() > 0


def test_closed_pipeline_says_so(bundle_root: Path) -> None:
    from hart_edge.runtime import EngineError

    opened = Pipeline.open(Bundle(bundle_root))
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.generate("a tree")
