"""The reference model against both recorded runs: every recorded tensor."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import RELATIVE_NORM, assert_close, relative_error

from hart_edge.export.recording import Arrays, Recording, run_encoder, run_reference
from hart_edge.export.reference.hart import HartReference
from hart_edge.runtime.noise import RecordedNoise

PICTURES = {"decoded", "image", "roundtrip"}


def of_encoder(name: str) -> bool:
    return name.startswith("encoder_") or name == "roundtrip"


def mismatch(name: str, actual: np.ndarray, expected: np.ndarray) -> str:
    """Why a tensor is not the recorded one; empty when it is."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return f"{name}: shape {actual.shape}, recorded {expected.shape}, finite {np.isfinite(actual).all()}"
    if np.issubdtype(expected.dtype, np.integer):
        return "" if np.array_equal(actual, expected) else f"{name}: {(actual != expected).sum()} of {expected.size} differ"
    error, limit = relative_error(actual, expected), RELATIVE_NORM["recorded picture" if name in PICTURES else "recording"]
    return "" if error <= limit else f"{name}: relative error {error:.2e} > {limit}"


def mismatches(actual: Arrays, expected: Arrays) -> list[str]:
    return list(filter(None, (mismatch(name, actual[name], tensor) for name, tensor in expected.items())))


def test_generation_gives_every_recorded_tensor(recording: Recording, computed: Arrays) -> None:
    expected = {name: tensor for name, tensor in recording.outputs.items() if not of_encoder(name)}
    assert len(expected) > 70
    assert set(expected) - set(computed) == set()
    assert mismatches(computed, expected) == []


def test_encoder_gives_every_recorded_tensor(recording: Recording, recorded_config, reference: HartReference) -> None:
    expected = {name: tensor for name, tensor in recording.outputs.items() if of_encoder(name)}
    assert len(expected) == len(recorded_config["vae"]["v_patch_nums"]) + 3
    assert mismatches(run_encoder(reference, recording), expected) == []


def test_codes_and_residual_add_up_to_the_latent(recording: Recording, reference: HartReference) -> None:
    latent = torch.from_numpy(recording.outputs["encoder_latent"])
    indices, residual, f_hat = reference.vae.quantize.encode(latent)
    last = reference.vae.quantize.lookup(indices[-1], reference.vae.quantize.grid)
    rest = residual.transpose(1, 2).reshape(latent.shape) - last
    assert_close(f_hat + rest, latent, "float32")


def test_teacher_forcing_inputs_are_the_recorded_ones(recording: Recording, recorded_config, reference: HartReference) -> None:
    if recording.settings.smooth:
        pytest.skip("smooth sampling mixes codes, so tokens alone do not give the inputs")
    scales = len(recorded_config["vae"]["v_patch_nums"])
    inputs = reference.vae.quantize.inputs_of([torch.from_numpy(recording.outputs[f"idx_{i}"]) for i in range(scales)])
    assert len(inputs) == scales - 1
    for i, pooled in enumerate(inputs):
        assert relative_error(pooled, recording.outputs[f"next_{i}"]) <= RELATIVE_NORM["recording"]


def test_comparison_sees_a_changed_tensor(recording: Recording, computed: Arrays) -> None:
    """The comparison itself: one token, one latent and one non-finite value are enough to fail it."""
    for name, change in (("idx_1", 1), ("f_hat_final", 0.1), ("logits_2", np.nan)):
        changed = computed[name].copy()
        changed.reshape(-1)[0] += change
        assert name in mismatch(name, changed, recording.outputs[name])


def test_picture_is_in_range(computed: Arrays) -> None:
    assert 0 <= computed["image"].min() < computed["image"].max() <= 1


def test_images_of_a_batch_do_not_influence_each_other(recording: Recording, reference: HartReference, computed: Arrays) -> None:
    batch = recording.batch
    for image in range(batch):
        arrays = {name: np.split(noise, batch)[image] for name, noise in recording.noise.arrays.items()}
        rows = slice(image, image + 1)
        single = replace(recording, context=recording.context[rows], position_ids=recording.position_ids[rows], noise=RecordedNoise(arrays))
        alone = run_reference(reference, single)
        for name in filter(re.compile(r"idx_\d+").match, computed):
            np.testing.assert_array_equal(alone[name], computed[name][rows])
        assert relative_error(alone["f_hat_final"], computed["f_hat_final"][rows]) <= RELATIVE_NORM["recording"]
