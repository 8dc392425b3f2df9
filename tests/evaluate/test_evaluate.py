"""`hart-edge eval`: prompts, scores, Fréchet distance, contact sheet, command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hart_edge.export.evaluate import evaluate, held_out_prompts, own_prompts, reconstruct, write_sheet
from hart_edge.export.evaluate.frechet import features, frechet_distance
from hart_edge.export.evaluate.pictures import Pixels, rendered
from hart_edge.export.evaluate.prompts import held_out_scenes
from hart_edge.export.evaluate.run import judge, shares
from hart_edge.export.random_checkpoint import SIZES
from hart_edge.export.reference.config import AutoencoderConfig, TransformerConfig
from hart_edge.export.reference.hart import HartReference
from hart_edge.runtime import InputError, Options
from hart_edge.runtime.cli.app import run

COUNT = 12


@pytest.fixture(scope="module")
def real() -> list[Pixels]:
    return list(rendered(held_out_scenes(COUNT), 256))


def painter(pictures: Sequence[Pixels]):
    """Hands out ready pictures in the order of the seeds."""
    return lambda prompts, seeds, options: [pictures[seed] for seed in seeds]


def test_rendered_pictures_score_full_marks(real: list[Pixels]) -> None:
    result = evaluate(painter(real), held_out_prompts(COUNT), Options(), batch=5)
    assert result.shares["all_correct"] == 1.0
    assert len(result.scores) == COUNT
    assert result.frechet is None


def test_pictures_of_other_prompts_score_badly(real: list[Pixels]) -> None:
    result = evaluate(painter(real[1:] + real[:1]), held_out_prompts(COUNT), Options())
    assert result.shares["all_correct"] <= 0.1


def test_an_empty_picture_holds_nothing() -> None:
    blank = np.full((256, 256, 3), 230, np.uint8)
    assert shares(judge([blank], [held_out_prompts(1)[0].spec]))["all_correct"] == 0.0


def test_relation_counts_only_prompts_that_claim_one(real: list[Pixels]) -> None:
    prompts = held_out_prompts(COUNT)
    claimed = [prompt for prompt in prompts if prompt.spec.relation is not None]
    scores = judge(real, [prompt.spec for prompt in prompts])
    assert sum(score.relation is not None for score in scores) == len(claimed)


def test_same_seed_same_prompts() -> None:
    assert held_out_prompts(5, seed=3) == held_out_prompts(5, seed=3)
    assert held_out_prompts(5, seed=3) != held_out_prompts(5, seed=4)


def test_own_prompts_are_read_or_refused() -> None:
    (prompt,) = own_prompts(["two red circles above a blue square"])
    assert prompt.spec.relation == "above"
    with pytest.raises(InputError, match="lighthouse"):
        own_prompts(["a lighthouse at dusk"])


def test_frechet_distance_is_zero_for_equal_sets_and_grows_with_blur() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((989, 7)), rng.standard_normal((989, 7))
    assert abs(frechet_distance(first, first)) < 1e-6
    near, far = frechet_distance(first, second), frechet_distance(first, 2 * second + 1)
    assert 0 < near < 0.2 < 10 < far


def test_frechet_distance_of_known_gaussians() -> None:
    """Two Gaussians with equal covariance differ by the squared distance of their means."""
    x = np.random.default_rng(1).standard_normal((111, 3))
    assert frechet_distance(x, x + np.array([1.0, 2.0, 2.0])) == pytest.approx(9.0, abs=1e-6)


def test_features_see_colour_and_detail(real: list[Pixels]) -> None:
    smooth = np.asarray(Image.fromarray(real[0]).reduce(4).resize((256, 256)))
    a, b = features([real[0], smooth])
    assert a.shape == (16 * 7,)
    assert np.abs(a - b).max() > 0.01


def test_reconstruction_reports_both_ways() -> None:
    torch.manual_seed(0)
    size = SIZES["tiny"]
    model = HartReference(TransformerConfig.from_dict(size.transformer), AutoencoderConfig.from_dict(size.autoencoder)).eval()
    result = reconstruct(model, count=2)
    assert set(result) == {"discrete_psnr", "discrete_ssim", "hybrid_psnr", "hybrid_ssim"}
    assert all(np.isfinite(value) for value in result.values())


def test_sheet_is_a_png(real: list[Pixels], tmp_path: Path) -> None:
    write_sheet(evaluate(painter(real), held_out_prompts(COUNT), Options()), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 256


def test_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(tmp_path), "--checkpoint", str(tmp_path)]) == 2
    assert run(["eval", str(tmp_path), "--n", "0"]) == 2
    assert run(["eval", str(tmp_path / "nowhere")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "either a bundle folder or --checkpoint" in message and "n is 0" in message and "does not exist" in message


def test_json_is_complete(real: list[Pixels]) -> None:
    content = evaluate(painter(real), held_out_prompts(2), Options()).to_json()
    assert json.loads(json.dumps(content)) == content
    assert {"prompt", "colour", "all_correct"} <= set(content["prompts"][0])
