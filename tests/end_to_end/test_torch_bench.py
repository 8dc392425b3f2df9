"""The PyTorch reference as a contender: its types, its noise, its arithmetic, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hart_edge.export.bench import Place, Source, compile_reference, draw, load_product, load_reference, put_reference, source_of
from hart_edge.export.bench_noise import KeptNoise
from hart_edge.export.flops import TextSizes, Work, stage_flops
from hart_edge.export.random_checkpoint import SIZES, make_checkpoint
from hart_edge.export.reference.config import AutoencoderConfig, TransformerConfig
from hart_edge.export.reference.hart import Settings
from hart_edge.runtime import Bundle, Pipeline
from hart_edge.runtime.bench import Job, job_of
from hart_edge.runtime.errors import CheckpointError, InputError
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.options import Options
from hart_edge.runtime.timing import StageTimes

CPU = Place("cpu", torch.float32)
JOB = job_of("two red circles", 1, Options())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than such small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose convolutions are few enough for float16 on a CPU."""
    scales, tiny = [1, 2, 3], SIZES["tiny"]
    small = replace(
        tiny,
        transformer=tiny.transformer | {"patch_nums": scales},
        autoencoder=tiny.autoencoder | {"v_patch_nums": scales, "ch_mult": [1, 2]},
    )
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", small)


def test_the_contender_draws_the_runtimes_picture(checkpoint_folder: Path, pipe: Pipeline) -> None:
    model, text = Source(str(checkpoint_folder)).open()
    times = StageTimes()
    pixels = draw(model, text, CPU, JOB, PhiloxNoise(JOB.seeds), times)
    drawn = np.asarray(pipe.generate(JOB.prompts[0], seed=0, options=JOB.options)).astype(int)
    assert pixels.dtype == torch.uint8
    assert np.abs(pixels[0].numpy() - drawn).max() <= 1
    assert list(times.seconds) == ["text_encoder", "context", "transformer", "sampling", "transition", "residual", "decoder"]


def test_half_precision_keeps_what_must_be_exact_and_draws_nearly_the_same(small_folder: Path) -> None:
    pictures = []
    for place in (CPU, Place("cpu", torch.float16)):
        model, text = Source(str(small_folder)).open()
        put_reference(model, text, place)
        pictures.append(draw(model, text, place, JOB, PhiloxNoise(JOB.seeds), StageTimes()).float())
    assert model.transformer.head.weight.dtype == model.vae.decoder.conv_in.weight.dtype == torch.float16
    assert model.vae.quantize.embedding.weight.dtype == torch.float32
    assert text.model.rotary_emb.inv_freq.dtype == torch.float32, "a rounded frequency turns into a large angle"
    assert (pictures[0] - pictures[1]).abs().mean() < 3  # of 255


def test_kept_noise_is_drawn_once_and_is_the_runtimes(small_folder: Path) -> None:
    philox = PhiloxNoise([3, 4])
    kept = KeptNoise(philox, "cpu")
    first = kept.token(1, 2, (5, 7))
    assert torch.equal(first, torch.from_numpy(philox.token(1, 2, (5, 7))))
    assert kept.token(1, 2, (5, 7)) is first and kept.bytes == 4 * 5 * 7
    for mine, theirs in (
        (kept.smooth(1, 2, (5, 7)), philox.smooth(1, 2, (5, 7))),
        (kept.diffusion_init(0, (3, 2)), philox.diffusion_init(0, (3, 2))),
    ):
        assert torch.equal(mine, torch.from_numpy(theirs))
    assert torch.equal(kept.diffusion_step(0, 1, (3, 2)), torch.from_numpy(philox.diffusion_step(0, 1, (3, 2))))
    assert kept.bytes == 4 * (2 * 5 * 7 + 2 * 3 * 2)

    model, text = Source(str(small_folder)).open()
    made, again, plain = (draw(model, text, CPU, JOB, noise, StageTimes()) for noise in (kept, kept, philox))
    assert torch.equal(made, plain) and torch.equal(again, plain)


def test_what_is_compiled_and_for_which_shapes(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, bool]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic, backend: compiled.append((type(self).__name__, dynamic)))
    compile_reference(*Source(str(small_folder)).open())
    layers = [("Qwen2DecoderLayer", False)] * 2
    assert compiled == [("Block", True), ("Block", True), *layers, ("SimpleMLP", False), ("Decoder", False)]


@pytest.mark.parametrize(("options", "batch", "before"), [(Options(), 2, 5), (Options(smooth=False, residual=False), 1, 0)])
def test_flops_are_those_that_torch_counts(small_folder: Path, options: Options, batch: int, before: int) -> None:
    counted: dict[str, int] = {}

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # what the CPU's fused kernel does is not counted
            yield
        counted[stage] = counted.get(stage, 0) + counter.get_total_flops()

    model, text = Source(str(small_folder)).open()
    text.system_ids = torch.arange(before)
    job = job_of("a tree", batch, options)
    with clock("text_encoder"):
        context = text(job.prompts)
    model.generate(context, PhiloxNoise(job.seeds), Settings.of(options), clock)
    work = Work(model.transformer.config, model.vae.config, TextSizes.of(text.model.config, before), options, batch, repeated=True)
    assert stage_flops(work) == counted
    least = stage_flops(replace(work, repeated=False))
    assert list(least) == list(counted)
    assert all(least[stage] <= counted[stage] for stage in least) and sum(least.values()) < sum(counted.values())


def test_flops_at_the_released_size_are_those_of_the_design() -> None:
    """26.5 of linear layers and 17.7 of attention, 4.4 of diffusion, 6.5 of the decoder, in TFLOP."""
    size = SIZES["full-1024"]
    text = TextSizes(28, 1536, 12, 2, 128, 8960)
    config = TransformerConfig.from_dict(size.transformer), AutoencoderConfig.from_dict(size.autoencoder)
    flops = stage_flops(Work(*config, text, Options(), 1, repeated=True))
    assert flops["transformer"] / 1e12 == pytest.approx(26.5 + 17.7, abs=0.3)
    least = stage_flops(Work(*config, text, Options(), 1))
    assert least["residual"] / 1e12 == pytest.approx(4.4, abs=0.1)
    assert least["decoder"] / 1e12 == pytest.approx(6.5, abs=0.1)


def test_the_contender_knows_its_work(small_folder: Path) -> None:
    contender = load_reference(Source(str(small_folder)), CPU, False, job_of("a tree", 2, Options()))
    assert (contender.pictures, contender.tokens) == (2, 2 * (1 + 4 + 9))
    assert contender.device_memory() is None and "CPU, float32" in contender.backend
    assert set(contender.flops) == {"text_encoder", "context", "transformer", "sampling", "transition", "residual", "decoder"}


def test_the_rate_is_taken_from_products(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch, "mm", lambda a, b: made.append((*a.shape, *b.shape)))
    times = StageTimes()
    load_product(CPU, size=3).once(times)
    assert made == [(3, 3, 3, 3)] * 10 and set(times.seconds) == {"product"}


def test_sources_that_cannot_be_compared_are_refused(checkpoint_folder: Path, bundle_root: Path, golden_folder: Path) -> None:
    bundle = Bundle(bundle_root, check_files=False)
    assert source_of(bundle, str(checkpoint_folder), None, None) == Source(str(checkpoint_folder))
    with pytest.raises(InputError, match="--system-prompt"):
        source_of(bundle, str(checkpoint_folder), None, "Write an enhanced prompt.")
    with pytest.raises(CheckpointError):
        Source(str(golden_folder)).open()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")
class TestOnTheGpu:
    @pytest.mark.parametrize("compiled", [False, True])
    def test_the_reference_draws_what_the_cpu_draws(self, checkpoint_folder: Path, compiled: bool) -> None:
        place = Place.of("fp16")
        contender = load_reference(Source(str(checkpoint_folder)), place, compiled, JOB)
        times = StageTimes(contender.wait)
        contender.once(times)
        assert contender.device_memory() > 0
        assert all(seconds > 0 for seconds in times.seconds.values())
        assert _difference(checkpoint_folder, place, JOB, compiled) < 8  # of 255, on average: a token may differ

    def test_single_precision_is_the_cpus(self, checkpoint_folder: Path) -> None:
        assert _difference(checkpoint_folder, Place.of("fp32"), JOB, compiled=False) < 0.5


def _difference(folder: Path, place: Place, job: Job, compiled: bool) -> float:
    pictures: list[Any] = []
    for here, compile_it in ((CPU, False), (place, compiled)):
        model, text = Source(str(folder)).open()
        put_reference(model, text, here)
        if compile_it:
            compile_reference(model, text)
        pictures.append(draw(model, text, here, job, KeptNoise(PhiloxNoise(job.seeds), here.device), StageTimes(here.wait)).float())
    return float((pictures[0] - pictures[1]).abs().mean())
