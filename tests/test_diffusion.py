"""The respaced schedule against the reference, and the sampling loop on a fake engine and on the recorded runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tolerances import RELATIVE_NORM, assert_close, relative_error

from hart_edge.export.reference.diffusion import Schedule
from hart_edge.runtime.diffusion import COEFFICIENTS, ResidualDiffusion, effective_guidance, schedule, timesteps
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.sampling import scale_ratio

STEPS = [1, 2, 4, 8, 16, 1000]


def test_timesteps_of_eight_steps() -> None:
    assert timesteps(8).tolist() == [0, 143, 285, 428, 571, 714, 856, 999]


@pytest.mark.parametrize("steps", STEPS)
def test_timesteps_follow_the_reference(steps: int) -> None:
    assert timesteps(steps).tolist() == Schedule.cosine(steps).timesteps.tolist()


@pytest.mark.parametrize("steps", STEPS)
def test_schedule_follows_the_reference(steps: int) -> None:
    expected = Schedule.cosine(steps)
    columns = [
        np.sqrt(1 / expected.alpha_bar),
        np.sqrt(1 / expected.alpha_bar - 1),
        expected.mean_x0,
        expected.mean_xt,
        np.log(expected.beta),
        expected.posterior_log_variance,
        np.arange(steps) > 0,
    ]
    assert_close(schedule(steps), np.stack(columns, axis=-1)[::-1], "float32")


@pytest.mark.parametrize("steps", [*STEPS, 19, 111, 989])
def test_schedule_is_finite_and_ends_without_noise(steps: int) -> None:
    rows = schedule(steps)
    assert rows.shape == (steps, len(COEFFICIENTS) - 1)
    assert np.isfinite(rows).all()
    gain = rows[:, COEFFICIENTS.index("noise_gain")]
    assert gain[-1] == 0
    assert (gain[:-1] == 1).all()


@pytest.mark.parametrize(("t", "effective"), [(0.0, 0.0), (0.999, 0.999), (1.0, 0.0), (4.5, 4.5)])
def test_guidance_is_off_at_exactly_one(t: float, effective: float) -> None:
    assert effective_guidance(t) == effective


def test_sample_runs_the_steps_from_last_to_first_with_each_images_noise(tiny_spec) -> None:
    calls = []

    def run(inputs, outputs) -> None:
        calls.append(inputs)
        outputs["x_next"][:] = inputs["x"] + 1

    rows, steps, noise = 25, 5, PhiloxNoise([3, 4])
    diffusion = ResidualDiffusion(tiny_spec, None, SimpleNamespace(run=run))
    condition = np.zeros((2 * 2 * rows, tiny_spec.diffusion_width), np.float32)
    residual = diffusion.sample(condition, batch=2, guidance=1.5, steps=steps, noise=noise)

    assert [call["timestep"].item() for call in calls] == timesteps(steps)[::-1].tolist()
    np.testing.assert_array_equal([call["coefficients"] for call in calls], np.c_[schedule(steps), np.full(steps, 1.5)])
    for k, call in enumerate(calls):
        np.testing.assert_array_equal(call["noise"], np.concatenate([noise.diffusion_step(j, k, (rows, 2)) for j in (0, 1)]))
    start = np.stack([noise.diffusion_init(j, (rows, 2)) for j in (0, 1)])
    assert_close(residual, (start + steps) * np.float32(0.6), "float32")


def posterior_step(prediction: np.ndarray, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The engine's formula in NumPy, from a prediction that is guided already."""
    c = dict(zip(COEFFICIENTS, inputs["coefficients"], strict=True))
    eps, v = np.split(prediction, 2, axis=1)
    x0 = np.clip(c["sqrt_recip_alpha_bar"] * inputs["x"] - c["sqrt_recip_alpha_bar_minus_1"] * eps, -1, 1)
    fraction = (v + 1) / 2
    log_variance = fraction * c["log_beta"] + (1 - fraction) * c["log_posterior"]
    return c["mean_x0"] * x0 + c["mean_xt"] * inputs["x"] + c["noise_gain"] * np.exp(0.5 * log_variance) * inputs["noise"]


def test_sample_replays_the_recorded_run(recording, recorded_config, tiny_spec) -> None:
    outputs, seen = recording.outputs, []

    def run(inputs, results) -> None:
        k = len(seen)
        seen.append(inputs)
        assert relative_error(inputs["x"], outputs[f"diff_x_{k}"]) <= RELATIVE_NORM["recording"]
        assert inputs["timestep"].tolist() == outputs[f"diff_t_{k}"].tolist()
        results["x_next"][:] = posterior_step(outputs[f"diff_out_{k}"][: inputs["x"].shape[0]], inputs)

    channels = outputs["diffusion_out"].shape[1]
    diffusion = ResidualDiffusion(replace(tiny_spec, latent_channels=channels), None, SimpleNamespace(run=run))
    scales = len(recorded_config["transformer"]["patch_nums"])
    guidance = recording.settings.cfg * scale_ratio(scales - 1, scales)
    residual = diffusion.sample(outputs["diffusion_cond"], recording.batch, guidance, 8, recording.noise)

    assert len(seen) == 8
    assert guidance == pytest.approx(float(outputs["diffusion_cfg"]))
    conditional = np.split(outputs["diffusion_out"], 2)[0]
    assert relative_error(residual.reshape(-1, channels), conditional) <= RELATIVE_NORM["recording"]
