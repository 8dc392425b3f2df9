"""Drawing from the codes alone: engines against the reference, what is run, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import RELATIVE_NORM, relative_error

from hart_edge.export.checkpoint import Checkpoint
from hart_edge.export.evaluate import engine_painter, open_reference, reference_painter
from hart_edge.export.reference.hart import Context, HartReference, Settings
from hart_edge.export.verify.metrics import psnr
from hart_edge.runtime import Options, Pipeline, StageTimes
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.engine import Array
from hart_edge.runtime.image import read_recipe
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.transformer import Conditioning

BOTH = [Options(), Options(residual=False)]
PROMPTS = ["a tree", "two red circles above a blue square"]


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> HartReference:
    return checkpoint.reference()


def reference_trace(model: HartReference, conditioning: Conditioning, options: Options) -> dict[str, Array]:
    context = Context(torch.from_numpy(conditioning.hidden), torch.from_numpy(conditioning.position_ids))
    return {k: v.numpy() for k, v in model.generate(context, PhiloxNoise([3, 4]), Settings.of(options)).items()}


@contextmanager
def counted(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the engines that are run within the block, in order."""
    calls: list[str] = []
    with monkeypatch.context() as patch:
        for name, engine in pipe.engines.items():
            original = engine.run
            patch.setattr(engine, "run", lambda *args, _name=name, _run=original: (calls.append(_name), _run(*args))[1])
        yield calls


@pytest.mark.parametrize("residual", [True, False], ids=["with", "without"])
@pytest.mark.parametrize(("smooth", "entry"), [(True, "smooth latent"), (False, "exported module")])
def test_engines_follow_the_reference(pipe: Pipeline, model: HartReference, residual: bool, smooth: bool, entry: str) -> None:
    options = Options(smooth=smooth, residual=residual)
    conditioning = pipe.encode_text(PROMPTS)
    want = reference_trace(model, conditioning, options)
    *_, last = pipe.loop.run(conditioning, options, PhiloxNoise([3, 4]), StageTimes())
    assert np.array_equal(last.tokens, want[f"idx_{last.scale}"])
    assert relative_error(last.f_hat, want["f_hat_final"]) <= RELATIVE_NORM[entry]


def test_without_residual_the_latent_is_the_codes_alone(pipe: Pipeline, model: HartReference) -> None:
    conditioning = pipe.encode_text(PROMPTS)
    on, off = (reference_trace(model, conditioning, options) for options in BOTH)
    before = on[f"f_hat_{len(model.patch_nums) - 2}"]
    assert np.array_equal(off["f_hat_final"], before + on["h_last"])
    residual = on["diffusion_out"][: on["diffusion_out"].shape[0] // 2].reshape(2, -1, before.shape[1])
    added = residual.transpose(0, 2, 1).reshape(before.shape)
    assert relative_error(on["f_hat_final"], off["f_hat_final"] + added) <= RELATIVE_NORM["exported module"]
    assert set(on) - set(off) == {name for name in on if name.startswith(("diffusion_", "diff_"))} != set()


def test_residual_engines_are_run_only_where_asked_for(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(pipe, monkeypatch) as calls:
        pipe.generate("a tree")
    assert calls.count("residual_condition") == 1 and calls.count("residual_step") == 8
    times = StageTimes()
    with counted(pipe, monkeypatch) as calls:
        pipe.generate("a tree", options=Options(residual=False), times=times)
    assert set(calls) == set(pipe.engines) - {"residual_condition", "residual_step"}
    assert set(times.seconds) == {"text_encoder", "context", "transformer", "sampling", "transition", "decoder"}


def test_reference_clock_has_no_residual_stage_without_it(pipe: Pipeline, model: HartReference) -> None:
    conditioning, stages = pipe.encode_text(["a tree"]), []
    for options in BOTH:
        times = StageTimes()
        context = Context(torch.from_numpy(conditioning.hidden), torch.from_numpy(conditioning.position_ids))
        model.generate(context, PhiloxNoise([3]), Settings.of(options), times)
        stages.append(set(times.seconds))
    assert stages[0] - stages[1] == {"residual"} and stages[1] <= stages[0]


def test_every_setting_reaches_the_reference() -> None:
    options = Options(cfg=2.0, top_k=19, top_p=0.5, smooth=False, diffusion_steps=3, residual=False)
    assert asdict(Settings.of(options)) == asdict(options)


def test_painters_leave_it_out_alike(pipe: Pipeline, checkpoint_folder: Path) -> None:
    opened, text, _ = open_reference(str(checkpoint_folder))
    painters = engine_painter(pipe), reference_painter(opened, text)
    on, off = ([paint(PROMPTS, [3, 4], options) for paint in painters] for options in BOTH)
    for engine, reference in (on, off):
        assert min(psnr(a / 255, b / 255) for a, b in zip(engine, reference, strict=True)) >= 60
    assert all(psnr(a / 255, b / 255) < 50 for a, b in zip(on[0], off[0], strict=True))


def test_stream_and_batch_leave_it_out(pipe: Pipeline) -> None:
    *_, step = pipe.stream("a tree", seed=6, options=Options(residual=False))
    one, with_it = (pipe.generate("a tree", seed=6, options=options) for options in reversed(BOTH))
    batch = pipe.generate_batch(["a tree", "a boat"], seeds=[6, 7], options=Options(residual=False))
    assert np.array_equal(step.preview(), one) and np.array_equal(batch[0], one)
    assert not np.array_equal(one, with_it)


def test_flag_reaches_the_picture(bundle_root: Path, tmp_path: Path) -> None:
    for flag in ("--residual", "--no-residual"):
        assert run(["generate", "a tree", "--bundle", str(bundle_root), "-o", str(tmp_path / f"{flag}.png"), flag]) == 0
    on, off = (tmp_path / f"{flag}.png" for flag in ("--residual", "--no-residual"))
    assert (read_recipe(on)["settings"]["residual"], read_recipe(off)["settings"]["residual"]) == (True, False)
    assert on.read_bytes() != off.read_bytes()
