"""Verification passes what is right and names the stage of what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from hart_edge.export.checkpoint import Checkpoint, load_checkpoint, load_recorded_checkpoint
from hart_edge.export.exporter import export_bundle
from hart_edge.export.random_checkpoint import _size, make_checkpoint
from hart_edge.export.recording import Recording, run_encoder, run_reference
from hart_edge.export.reference.hart import Settings
from hart_edge.export.verify import Report, verify_bundle, verify_recording
from hart_edge.export.verify.gates import ENGINE
from hart_edge.runtime import Bundle, InputError
from hart_edge.runtime.bundle import WEIGHTS
from hart_edge.runtime.noise import PhiloxNoise, RecordedNoise

ONE_PROMPT = ["a lighthouse at dusk"]


def values(report: Report, metric: str) -> list[float]:
    return [check.value for check in report.checks if check.metric == metric]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_recorded_run_passes_through_reference_and_engines(recorded_folder: Path, precision: str) -> None:
    report = verify_recording(recorded_folder, precision)
    assert report.failures() == []
    assert report.passed
    if precision == "fp32":
        assert values(report, "token agreement") == [1.0]
        assert min(values(report, "picture PSNR dB")) >= 60


def test_exported_bundle_passes(bundle_root: Path, checkpoint: Checkpoint) -> None:
    report = verify_bundle(Bundle(bundle_root), checkpoint)
    assert report.failures() == []
    assert {
        "files",
        "tokenizer",
        "text_encoder",
        "context",
        "transformer",
        "sampling",
        "transition",
        "residual_step",
        "decoder",
        "pipeline",
    } <= {check.stage for check in report.checks}


def test_fp16_bundle_passes(bundle_root_fp16: Path, checkpoint: Checkpoint) -> None:
    assert verify_bundle(Bundle(bundle_root_fp16), checkpoint, ONE_PROMPT).failures() == []


# One weight tensor per engine; not one before a normalisation, which would undo the change.
WEIGHT_OF = {
    "text_encoder": "layers.0.q.weight",
    "context": "embed.weight",
    "transformer": "layers.1.up.weight",
    "transition": "embed.weight",
    "residual_condition": "condition.weight",
    "residual_step": "layers.0.first.weight",
    "decoder": "decoder.up.1.block.0.conv2.weight",
}


def scale_weight(root: Path, name: str, pick: object) -> None:
    """Multiply part of one stored tensor by 1.01, in place in the file."""
    with safe_open(root / WEIGHTS, framework="numpy") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no mapping
    data = bytearray((root / WEIGHTS).read_bytes())
    old = tensors[name].tobytes()
    at = bytes(data).index(old)
    new = tensors[name].copy()
    new[pick] *= 1.01
    data[at : at + len(old)] = new.tobytes()
    (root / WEIGHTS).write_bytes(bytes(data))


@pytest.mark.parametrize("engine", WEIGHT_OF)
def test_weight_tensor_changed_by_one_percent_fails_at_its_engine(
    engine: str, bundle_copy: Path, checkpoint: Checkpoint, rehash: Callable[[Path], None]
) -> None:
    scale_weight(bundle_copy, f"{engine}.{WEIGHT_OF[engine]}", ...)
    rehash(bundle_copy)
    failures = verify_bundle(Bundle(bundle_copy), checkpoint, ONE_PROMPT).failures()
    assert engine in {check.stage for check in failures if check.mode == "weights"}
    assert {check.stage for check in failures if check.mode == "teacher-forced"} == {engine}


def test_fp16_weight_tensor_changed_by_one_percent_fails_too(
    bundle_root_fp16: Path, tmp_path: Path, checkpoint: Checkpoint, rehash: Callable[[Path], None]
) -> None:
    root = Path(shutil.copytree(bundle_root_fp16, tmp_path / "bundle"))
    scale_weight(root, f"residual_step.{WEIGHT_OF['residual_step']}", ...)
    rehash(root)
    assert "residual_step" in verify_bundle(Bundle(root), checkpoint, ONE_PROMPT).failed_stages()


def test_first_step_of_the_diffusion_has_a_wider_gate_and_the_others_have_not() -> None:
    first, later = (ENGINE["fp16"][f"residual_step x{case}"] for case in (", first step", ""))
    assert first.allows(0.09)
    assert not later.allows(0.09)
    assert not first.allows(0.229)  # the bundled model with a last layer that is 1 % too large
    assert not ENGINE["fp32"]["residual_step x, first step"].allows(1e-3)


def test_single_weight_changed_by_one_percent_fails_and_is_named(
    bundle_copy: Path, checkpoint: Checkpoint, rehash: Callable[[Path], None]
) -> None:
    scale_weight(bundle_copy, "transformer.layers.1.up.weight", (3, 5))
    rehash(bundle_copy)
    report = verify_bundle(Bundle(bundle_copy), checkpoint, ONE_PROMPT)
    assert report.failed_stages() == ["transformer"]
    assert "transformer.layers.1.up.weight (1 of" in report.failures()[0].where


def test_changed_file_fails_even_where_the_manifest_was_not_touched(bundle_copy: Path, checkpoint: Checkpoint) -> None:
    scale_weight(bundle_copy, "transformer.layers.1.up.weight", (3, 5))
    report = verify_bundle(Bundle(bundle_copy, check_files=False), checkpoint, ONE_PROMPT)
    assert report.failed_stages() == ["files", "transformer"]


def test_damaged_graph_is_reported_not_raised(bundle_copy: Path, checkpoint: Checkpoint) -> None:
    path = bundle_copy / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    report = verify_bundle(Bundle(bundle_copy, check_files=False), checkpoint, ONE_PROMPT)
    assert report.failed_stages() == ["files", "engines"]
    assert "decoder" in report.failures()[-1].where


def test_another_checkpoint_fails_or_is_refused(bundle_root: Path, tmp_path: Path, checkpoint_folder: Path) -> None:
    from hart_edge.export.random_checkpoint import SIZES

    same_size = load_checkpoint(make_checkpoint(tmp_path / "other", SIZES["tiny"], seed=1))
    assert "transformer" in verify_bundle(Bundle(bundle_root), same_size, ONE_PROMPT).failed_stages()
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(InputError, match="different sizes"):
        verify_bundle(Bundle(bundle_root), load_checkpoint(make_checkpoint(tmp_path / "other", ODD_SIZE)), ONE_PROMPT)


def test_checkpoint_without_the_text_model_is_refused(bundle_root: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    for part in ("llm", "tokenizer"):
        shutil.copytree(checkpoint_folder / part, tmp_path / part)
    with pytest.raises(InputError, match="no text model"):
        verify_bundle(Bundle(bundle_root), load_checkpoint(tmp_path), ONE_PROMPT)


def test_other_system_prompt_is_refused(bundle_root: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="system prompt"):
        verify_bundle(Bundle(bundle_root), checkpoint, ONE_PROMPT, system_prompt="be brief")


# Another shape of everything: scales, batch, steps, heads, latent width, φ count.
ODD_SIZE = _size([1, 3, 5, 7], depth=1, width=48, heads=3, tokens=19, text=(32, 1, 2), vae=(333, 6, 32), diffusion=(40, 1))


@pytest.fixture(scope="module")
def odd_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the format of the recorded runs, made with the reference: batch 3, 4 diffusion steps."""
    folder = tmp_path_factory.mktemp("odd")
    root = make_checkpoint(folder / "checkpoint", ODD_SIZE)
    checkpoint = load_checkpoint(root)
    model = checkpoint.reference()
    rng = np.random.default_rng(5)
    context = rng.standard_normal((3, 19, 32)).astype(np.float32)
    positions = np.minimum(np.arange(19), [[18], [4], [0]])
    noise = _noise_arrays(model.patch_nums, batch=3, codes=333, channels=6, steps=4)
    run = Recording(context, positions, RecordedNoise(noise), Settings(cfg=2.0, smooth=True, diffusion_steps=4), {})
    outputs = {key: value for key, value in run_reference(model, run).items() if not key.startswith(("x_", "head_", "h_last"))}
    run.outputs = outputs
    outputs |= run_encoder(model, run)
    np.savez(folder / "inputs.npz", context=context, context_position_ids=positions, context_mask=np.ones_like(positions))
    np.savez(folder / "noise.npz", **noise)
    np.savez(folder / "outputs.npz", **outputs)
    config = {"transformer": ODD_SIZE.transformer | {"num_sampling_steps": "4"}, "vae": ODD_SIZE.autoencoder}
    (folder / "config.json").write_text(json.dumps(config | {"call": {"cfg": 2.0, "more_smooth": True, "batch": 3}}))
    for part, name in (("llm", "transformer"), ("tokenizer", "vae")):
        shutil.copy(root / part / "model.safetensors", folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def odd_bundle(odd_recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint, _ = load_recorded_checkpoint(odd_recording)
    return export_bundle(checkpoint, tmp_path_factory.mktemp("odd") / "bundle").root


@pytest.fixture
def odd_export(odd_recording: Path, odd_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying the odd recording, or an altered copy of it, exports its checkpoint once."""

    def copy(checkpoint: Checkpoint, target: Path, precision: str) -> Bundle:
        return Bundle(shutil.copytree(odd_bundle, target))

    monkeypatch.setattr("hart_edge.export.verify.run.export_bundle", copy)


def _noise_arrays(patch_nums: tuple[int, ...], batch: int, codes: int, channels: int, steps: int) -> dict[str, np.ndarray]:
    source, arrays = PhiloxNoise(range(batch)), {}
    for i, side in enumerate(patch_nums):
        for name, draw in (("token", source.token), ("smooth", source.smooth)):
            arrays[f"{name}_{i}"] = np.stack([draw(j, i, (side * side, codes)) for j in range(batch)])
    shape = (patch_nums[-1] ** 2, channels)
    arrays["diffusion_init"] = np.concatenate([source.diffusion_init(j, shape) for j in range(batch)])
    for k in range(steps):
        arrays[f"diffusion_step_{k}"] = np.concatenate([source.diffusion_step(j, k, shape) for j in range(batch)])
    return arrays


@pytest.mark.slow
def test_recording_of_other_sizes_batch_scales_and_steps_passes(odd_recording: Path, odd_export: None) -> None:
    report = verify_recording(odd_recording)
    assert report.failures() == []
    assert len(values(report, "prediction relative error")) == 4


@pytest.mark.slow
def test_altered_recording_fails_at_the_reference(odd_recording: Path, odd_export: None, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(odd_recording, tmp_path / "altered"))
    outputs = dict(np.load(folder / "outputs.npz"))
    outputs["f_hat_1"] = outputs["f_hat_1"] * 1.01
    np.savez(folder / "outputs.npz", **outputs)
    assert "reference" in verify_recording(folder).failed_stages()
