"""Training: the same numbers as the reference, a loss that falls, runs that resume, faults that are named."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hart_edge.export.checkpoint import load_checkpoint
from hart_edge.export.reference.config import AutoencoderConfig
from hart_edge.export.reference.diffusion import Schedule
from hart_edge.export.reference.hart import Context, HartReference, Settings
from hart_edge.export.reference.text import TextConditioner
from hart_edge.export.train import tokenizer, transformer
from hart_edge.export.train.assemble import assemble
from hart_edge.export.train.data import Shapes, make_batch, stream
from hart_edge.export.train.diffusion_loss import DiffusionLoss, residual_target
from hart_edge.export.train.quantize import encode, gain_of, quantise
from hart_edge.export.train.sequence import block_causal, forward, kept_count, random_places, take
from hart_edge.export.train.sizes import SIZES, TINY
from hart_edge.export.train.state import read_log, read_state
from hart_edge.export.train.text import CaptionTokens, drop_captions, encode_text
from hart_edge.runtime.errors import CheckpointError, HartError, InputError
from hart_edge.runtime.noise import PhiloxNoise

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def few_pictures() -> Iterator[None]:
    """Evaluate on a few held-out pictures only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "EVALUATED", 4)
        patch.setattr(transformer, "EVALUATED", 4)
        yield


class Discs:
    """A stand-in for the procedural pictures: one disc of one of three colours."""

    def sample(self, rng: np.random.Generator, held_out: bool) -> tuple[tuple[int, float, float], str]:
        colour = int(rng.integers(3))
        return (colour, *rng.uniform(0.3, 0.7, 2).tolist()), f"a {('red', 'green', 'blue')[colour]} disc"

    def pack(self, scenes: list[tuple[int, float, float]]) -> dict[str, Tensor]:
        return {"scene": torch.tensor(scenes, dtype=torch.float32)}

    claim_sizes = (3,)

    def claims(self, caption: str) -> list[int]:
        return [("red", "green", "blue").index(caption.split()[1])]

    def render(self, packed: dict[str, Tensor], pixels: int) -> Tensor:
        colour, x, y = packed["scene"].T[:, :, None, None]
        axis = (torch.arange(pixels) + 0.5) / pixels
        cover = ((x - axis[None, None]).square() + (y - axis[None, :, None]).square() < 0.05)[:, None].float()
        paint = torch.nn.functional.one_hot(colour.flatten().long(), 3)[:, :, None, None].float()
        return 0.9 * (1 - cover) + paint * cover


def options_of(module: object, out: Path, *more: str) -> Namespace:
    words = "--size tiny --batch 4 --workers 0 --device cpu --no-compile --warmup 2 --pool 64".split()
    return module.parser().parse_args(["--out", str(out), *words, *more])  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "tokenizer"
    tokenizer.run(options_of(tokenizer, out, "--steps", "24"), Discs())
    return out


@pytest.fixture(scope="module")
def stage2(stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "transformer"
    words = ["--tokenizer", str(stage1), "--steps", "24", "--vocab", "280", "--lr", "3e-3"]
    transformer.run(options_of(transformer, out, *words, "--reuse", "2"), Discs())
    return out


@pytest.fixture
def model() -> HartReference:
    """Random weights off zero, modulations too, so that nothing that matters is multiplied by nothing."""
    torch.manual_seed(3)
    model = HartReference(TINY.transformer_config, TINY.autoencoder_config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def test_training_forward_gives_the_logits_of_generation(model: HartReference) -> None:
    hidden, positions = torch.randn(3, 12, 32), torch.tensor([[*range(5), *[4] * 7], [*range(12)], [0] * 12])
    trace = model.generate(Context(hidden, positions), PhiloxNoise([1, 2, 3]), Settings(cfg=2.0))
    inputs = [trace[f"next_{i}"] for i in range(3)]
    dropped = drop_captions(torch.cat([hidden, hidden]), torch.cat([positions, positions]), torch.tensor([False] * 3 + [True] * 3))
    got = forward(model.transformer, *dropped, [torch.cat([x, x]) for x in inputs])
    for scale, logits in enumerate(got.by_scale()):
        want = trace[f"logits_{scale}"][:, -logits.shape[1] :]
        assert float((logits - want).abs().max()) < 1e-4
    assert float((got.hidden[:, -64:] - trace["hidden_3"]).abs().max()) < 1e-4


def test_kept_tokens_are_those_of_the_whole_scale_when_all_are_kept(model: HartReference) -> None:
    context, positions = torch.randn(2, 12, 32), torch.arange(12).expand(2, 12)
    inputs = [torch.randn(2, 8, p, p) for p in (2, 4, 8)]
    shuffled = torch.stack([torch.randperm(64), torch.randperm(64)])
    whole = forward(model.transformer, context, positions, inputs).by_scale()
    kept = forward(model.transformer, context, positions, inputs, shuffled).by_scale()
    torch.testing.assert_close(kept[-1], take(whole[-1], shuffled), atol=1e-4, rtol=0)
    few = forward(model.transformer, context, positions, inputs, shuffled[:, :9]).by_scale()
    assert [part.shape[1] for part in few] == [1, 4, 16, 9]
    torch.testing.assert_close(few[1], whole[1], atol=1e-4, rtol=0)


def test_block_causal_mask() -> None:
    assert block_causal([2, 1], CPU).tolist() == [[True, True, False], [True, True, False], [True, True, True]]


def test_a_fifth_of_the_last_scale_is_kept_on_average_and_sequences_are_multiples_of_eight() -> None:
    patch_nums = SIZES["small"].transformer_config.patch_nums
    counts = [kept_count(patch_nums, 32, 0.2, (i + 0.5) / 400) for i in range(400)]
    assert 0.17 < np.mean(counts) / 256 < 0.24
    assert len(set(counts)) <= 8
    assert {(32 + sum(p * p for p in patch_nums[1:-1]) + count) % 8 for count in counts} == {0}
    places = random_places(3, 64, 9, CPU, torch.Generator().manual_seed(0))
    assert all(len(set(row)) == 9 and max(row) < 64 for row in places.tolist())


def test_training_quantisation_is_the_reference_encode(model: HartReference) -> None:
    quantizer, f = model.vae.quantize, torch.randn(2, 8, 8, 8)
    indices, residual, f_hat = quantizer.encode(f)
    code = quantise(quantizer, f, 0.25)
    assert all(torch.equal(a.flatten(), b) for a, b in zip(indices, code.indices, strict=True))
    torch.testing.assert_close(code.f_hat, f_hat, atol=1e-5, rtol=0)
    clean = encode(quantizer, f)
    assert all(torch.equal(a, b) for a, b in zip(indices, clean.targets, strict=True))
    torch.testing.assert_close(clean.residual, residual)
    for got, want in zip(clean.inputs, quantizer.inputs_of(indices), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_corruption_changes_inputs_and_later_targets_follow(model: HartReference) -> None:
    quantizer, f = model.vae.quantize, torch.randn(16, 8, 8, 8)
    clean, dirty = encode(quantizer, f), encode(quantizer, f, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(clean.targets[0], dirty.targets[0])
    assert not torch.equal(clean.inputs[0], dirty.inputs[0])
    torch.testing.assert_close(clean.inputs[-1].shape, dirty.inputs[-1].shape)
    # The residual is what the wrong codes leave over, so latent = f_hat of the inputs + residual still holds.
    torch.testing.assert_close(dirty.inputs[-1] + dirty.residual.transpose(1, 2).view_as(f), f, atol=1e-5, rtol=0)


def test_rescaled_tokenizer_chooses_the_same_codes_and_pictures(model: HartReference) -> None:
    image = torch.rand(2, 3, 32, 32)
    before = model.vae.encode(image)
    indices, residual, f_hat = model.vae.quantize.encode(before)
    picture = model.vae.decode(f_hat)
    tokenizer.rescale(model.vae, 1.7)
    after = model.vae.quantize.encode(model.vae.encode(image))
    assert all(torch.equal(a, b) for a, b in zip(indices, after[0], strict=True))
    torch.testing.assert_close(after[1], 1.7 * residual, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.vae.decode(after[2]), picture, atol=1e-4, rtol=1e-4)


def test_gain_puts_the_targets_inside() -> None:
    rest = torch.randn(20000) * 0.05
    assert float((rest * gain_of(rest)).abs().lt(0.6).float().mean()) == pytest.approx(0.997, abs=1e-3)
    target = residual_target(torch.full((1, 2), 0.3), torch.tensor([[0.0, -5.0]]))
    assert target.tolist() == [[pytest.approx(0.5), 1.0]]


class _Fixed(nn.Module):
    """A network that always says the same."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return self.output


@pytest.mark.parametrize("t", [0, 1, 400, 998])
def test_diffusion_loss_against_the_formula(t: int) -> None:
    x0, noise, eps, v = 0.3, -0.8, -0.5, 0.2
    s = Schedule.cosine(1000)
    ab, previous = s.alpha_bar[t], s.alpha_bar[t - 1] if t else 1.0
    x_t = math.sqrt(ab) * x0 + math.sqrt(1 - ab) * noise
    x0_model = (x_t - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
    first, second = math.sqrt(previous) * s.beta[t] / (1 - ab), math.sqrt(1 - s.beta[t]) * (1 - previous) / (1 - ab)
    q_mean, p_mean = first * x0 + second * x_t, first * x0_model + second * x_t
    q_log = s.posterior_log_variance[t]
    p_log = (v + 1) / 2 * math.log(s.beta[t]) + (1 - v) / 2 * q_log
    kl = 0.5 * (-1 + p_log - q_log + math.exp(q_log - p_log) + (q_mean - p_mean) ** 2 * math.exp(-p_log)) / math.log(2)
    net = _Fixed(torch.tensor([[eps, v]]))
    got = DiffusionLoss(CPU)(net, torch.tensor([[x0]]), torch.zeros(1, 1), torch.tensor([t]), torch.tensor([[noise]]))  # type: ignore[arg-type]
    assert float(got[0]) == pytest.approx((eps - noise) ** 2, rel=1e-5)
    assert float(got[1]) == pytest.approx(kl, rel=2e-3, abs=1e-5)


def test_batches_depend_on_their_index_and_not_on_the_workers() -> None:
    alone, two = stream(Discs(), 4, 5, start=3), stream(Discs(), 4, 5, start=3, workers=2)
    for index in range(3, 7):
        want = make_batch(Discs(), 4, 5, index)
        for batch in (next(alone), next(two)):
            assert batch.captions == want.captions
            assert torch.equal(batch.packed["scene"], want.packed["scene"])
    assert make_batch(Discs(), 4, 5, 0).captions != make_batch(Discs(), 4, 5, 0, held_out=True).captions


def losses(out: Path, *names: str) -> dict[str, float]:
    row = [row for row in read_log(out / "log.jsonl") if names[0] in row][-1]
    return {name: row[name] for name in names}


def test_tokenizer_learns(stage1: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    tokenizer.run(options_of(tokenizer, first, "--steps", "2"), Discs())
    assert losses(stage1, "psnr_hybrid")["psnr_hybrid"] > losses(first, "psnr_hybrid")["psnr_hybrid"] + 1
    assert losses(stage1, "inside_rescaled")["inside_rescaled"] > 0.99


def test_the_decoder_goes_on_alone(stage1: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoder"
    tokenizer.run(options_of(tokenizer, out, "--steps", "12", "--init", str(stage1), "--part", "decoder"), Discs())
    before, after = (load_file(run / "tokenizer/model.safetensors") for run in (stage1, out))
    changed = {key.split(".")[1] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder", "post_quant_conv"}
    assert losses(out, "psnr_hybrid")["psnr_hybrid"] > losses(stage1, "psnr_hybrid")["psnr_hybrid"]


def test_a_transformer_goes_on_from_another_run(stage1: Path, stage2: Path, tmp_path: Path) -> None:
    more = ["--tokenizer", str(stage1), "--steps", "1", "--warmup", "1000", "--init", str(stage2)]
    transformer.run(options_of(transformer, tmp_path / "run", *more), Discs())
    assert losses(tmp_path / "run", "held_ce")["held_ce"] == pytest.approx(losses(stage2, "held_ce")["held_ce"], abs=0.02)
    with pytest.raises(CheckpointError, match="no weights in llm, text_model"):
        transformer.run(options_of(transformer, tmp_path / "other", *more[:-1], str(stage1)), Discs())


def test_transformer_learns_and_its_folder_is_a_checkpoint(stage1: Path, stage2: Path, tmp_path: Path) -> None:
    measured = losses(stage2, "held_ce", "residual_error", "psnr_codes", "psnr_diffused", "psnr_latent")
    assert measured["held_ce"] < math.log(64) - 0.2
    assert all(map(math.isfinite, measured.values()))
    assemble(stage2, tmp_path / "half", torch.float16)
    checkpoint = load_checkpoint(tmp_path / "half")
    assert checkpoint.text_model is not None
    text = TextConditioner(checkpoint.text_model, 12)
    trace = checkpoint.reference().generate(text(["a red disc"]), PhiloxNoise([0]), Settings())
    assert trace["image"].shape == (1, 3, 32, 32)
    assert bool(trace["image"].isfinite().all())


def test_captions_are_encoded_as_the_reference_does(stage2: Path) -> None:
    text = TextConditioner(stage2 / "text_model", 12)
    prompts = ["a red disc", "a blue disc and much more text than fits into the context", ""]
    tokens = CaptionTokens(stage2 / "bpe", 12)(prompts)
    assert torch.equal(tokens, text.tokenize(prompts).ids)
    hidden, positions = encode_text(text.model, tokens)
    want = text(prompts)
    assert torch.equal(positions, want.position_ids)
    torch.testing.assert_close(hidden.detach(), want.hidden, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", [tokenizer, transformer])
def test_a_resumed_run_ends_in_the_same_state(stage: object, stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hart_edge.export.train.loop.SAVE_SECONDS", 0.0)
    more = ["--reuse", "1"] + ([] if stage is tokenizer else ["--tokenizer", str(stage1), "--vocab", "280"])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stage.run(options_of(stage, whole, "--steps", "3", *more), Discs())  # type: ignore[attr-defined]
    interrupted = options_of(stage, parts, "--steps", "3", *more)
    with pytest.raises(_Interrupt):
        stage.run(interrupted, _Stopping(interrupted, after=1))  # type: ignore[attr-defined]
    assert stage.run(interrupted, Discs()) == 3  # type: ignore[attr-defined]
    a, b = read_state(whole / "state.pt"), read_state(parts / "state.pt")
    assert a["step"] == b["step"] == 3
    for part in ("model", "average"):
        for key, value in a["trainer"][part].items():
            assert torch.equal(value, b["trainer"][part][key]), key


class _Interrupt(Exception):
    """Stands for a machine that is taken away."""


class _Stopping(Discs):
    """Fails after some training batches; every step before saved its state."""

    def __init__(self, options: Namespace, after: int) -> None:
        self.left = after * options.batch

    def render(self, packed: dict[str, Tensor], pixels: int) -> Tensor:
        if self.left <= 0:
            raise _Interrupt
        self.left -= len(packed["scene"])
        return super().render(packed, pixels)


def test_time_ends_a_session_and_the_next_one_goes_on(tmp_path: Path) -> None:
    options = options_of(tokenizer, tmp_path / "run", "--minutes", "60", "--session", "0.03", "--reuse", "1")
    first = tokenizer.run(options, Discs())
    second = tokenizer.run(options, Discs())
    assert 1 <= first < second
    assert (tmp_path / "run/tokenizer/model.safetensors").is_file()


def test_faults_are_named(stage1: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "state.pt").write_bytes((stage1 / "state.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        tokenizer.run(options_of(tokenizer, run, "--steps", "24"), Discs())
    torch.save({"step": 1}, run / "state.pt")
    with pytest.raises(CheckpointError, match="no training state"):
        tokenizer.run(options_of(tokenizer, run, "--steps", "24"), Discs())
    with pytest.raises(CheckpointError, match="'batch': 4"):
        tokenizer.run(options_of(tokenizer, stage1, "--steps", "24", "--batch", "2", "--reuse", "2"), Discs())
    with pytest.raises(CheckpointError, match=r"tokenizer/model\.safetensors does not exist"):
        transformer.run(options_of(transformer, run, "--tokenizer", str(tmp_path)), Discs())
    with pytest.raises(CheckpointError, match="no weights in llm"):
        assemble(stage1, tmp_path / "out", torch.float16)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_log(run / "log.jsonl")
    with pytest.raises(InputError, match="no size 'huge'"):
        tokenizer.run(options_of(tokenizer, tmp_path / "new", "--size", "huge"), Discs())
    with pytest.raises(HartError, match="--reuse is 3"):
        transformer.run(options_of(transformer, run, "--tokenizer", str(stage1), "--reuse", "3"), Discs())
    with pytest.raises(InputError, match=r"--inside is 1\.5; expected a share"):
        tokenizer.run(options_of(tokenizer, tmp_path / "new", "--inside", "1.5"), Discs())


def test_the_share_of_objects_inside_others_can_be_chosen() -> None:
    """For training only: held-out scenes are those that everything is judged by."""

    def share(inside: float | None, held_out: bool) -> float:
        rng = np.random.default_rng(5)
        return sum(Shapes(inside).sample(rng, held_out)[0].relation == "inside" for _ in range(300)) / 300

    assert share(0.0, held_out=False) == 0 and share(1.0, held_out=False) == 1
    assert 0.17 < share(None, held_out=False) < 0.33  # one in four, give or take three standard errors
    assert share(1.0, held_out=True) == share(None, held_out=True) < 0.2


def test_a_damaged_tokenizer_is_named(stage1: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    data = (stage1 / "tokenizer/model.safetensors").read_bytes()
    (tmp_path / "tokenizer/model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a tokenizer of this size"):
        transformer.run(options_of(transformer, tmp_path / "out", "--tokenizer", str(tmp_path)), Discs())


def test_a_log_that_was_cut_off_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": ')
    assert read_log(path) == [{"step": 1}]
    path.write_text('{"step": \n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="line 1"):
        read_log(path)


def test_sizes_are_published_configurations() -> None:
    for size in SIZES.values():
        assert isinstance(size.autoencoder_config, AutoencoderConfig)
        assert size.transformer["context_dim"] == size.text["hidden_size"]
    assert SIZES["small"].pixels == 256


def test_a_run_that_diverged_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "image_loss", lambda *_: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(HartError, match="the loss is nan at step 1"):
        tokenizer.run(options_of(tokenizer, tmp_path / "run", "--steps", "1"), Discs())
    assert not (tmp_path / "run/state.pt").exists()
