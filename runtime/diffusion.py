"""Residual diffusion: the respaced cosine schedule and the loop over its steps.

Schedule after Nichol & Dhariwal (arXiv 2102.09672); the network and the posterior step are in the engine, which gets
the schedule's constants as inputs, so any number of steps runs on the same engine.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .engine import Engine, Tensor
from .memory import HOST, Memory
from .noise import Float32, Noise
from .spec import ModelSpec

TRAIN_STEPS = 1000
RESIDUAL_GAIN = np.float32(0.6)  # the published sampler scales the sampled residual by this
COEFFICIENTS = (
    "sqrt_recip_alpha_bar",
    "sqrt_recip_alpha_bar_minus_1",
    "mean_x0",
    "mean_xt",
    "log_beta",
    "log_posterior",
    "noise_gain",
    "guidance",
)
"""Order of the engine's `coefficients` input."""


def timesteps(steps: int) -> npt.NDArray[np.int64]:
    """The kept training timesteps, ascending: `steps` evenly spaced values from 0 to 999, rounded."""
    return np.rint(np.linspace(0, TRAIN_STEPS - 1, steps)).astype(np.int64)


def schedule(steps: int) -> npt.NDArray[np.float32]:
    """Constants of every step in the order they run (last timestep first), [steps, 7], columns as COEFFICIENTS.

    ᾱ(t) = cos²((t + 0.008)/1.008·π/2) with β ≤ 0.999 over 1000 steps; β is recomputed from the kept ᾱ; the
    log-variance bounds are log β and log β̃, the first β̃ (which is 0) replaced by the second.
    """
    t = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
    ideal = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    full = np.cumprod(1 - np.minimum(1 - ideal[1:] / ideal[:-1], 0.999))
    kept = full[timesteps(steps)]
    before = np.append(1.0, kept[:-1])
    beta = 1 - kept / before
    posterior = beta * (1 - before) / (1 - kept)
    posterior[0] = posterior[1] if steps > 1 else beta[0]  # a single step adds no noise: any finite value will do
    columns = [
        np.sqrt(1 / kept),
        np.sqrt(1 / kept - 1),
        beta * np.sqrt(before) / (1 - kept),
        (1 - before) * np.sqrt(1 - beta) / (1 - kept),
        np.log(beta),
        np.log(posterior),
        np.append(0.0, np.ones(steps - 1)),
    ]
    return np.stack(columns, axis=-1)[::-1].astype(np.float32)


def effective_guidance(t: float) -> float:
    """The published sampler switches guidance off where its weight is exactly 1."""
    return 0.0 if t == 1.0 else t


class ResidualDiffusion:
    """Hidden states and tokens of the last scale in, residual latents out."""

    def __init__(self, spec: ModelSpec, condition: Engine, step: Engine, memory: Memory = HOST) -> None:
        self.spec, self._condition, self._step, self._memory = spec, condition, step, memory

    def condition(self, hidden: Tensor, index: npt.NDArray[np.int64]) -> Tensor:
        """hidden [2B, L, C], index [B, L] → embedded condition [2B·L, W], the same for all steps."""
        shape = (hidden.shape[0] * hidden.shape[1], self.spec.diffusion_width)
        result = self._memory.empty(shape, self._condition.outputs["condition"].dtype)
        self._condition.run({"hidden": hidden, "index": index}, {"condition": result})
        return result

    def predict(self, x: Tensor, condition: Tensor, timestep: int, coefficients: Float32, noise: Float32) -> tuple[Tensor, Tensor]:
        """One step: x [N, Z], condition [2N, W] → x one step earlier [N, Z] and the guided (eps, v) [N, 2Z]."""
        earlier = self._memory.empty(x.shape, x.dtype)
        prediction = self._memory.empty((x.shape[0], 2 * x.shape[1]), np.float32)
        inputs: dict[str, Tensor] = {
            "x": x,
            "condition": condition,
            "timestep": np.array([timestep], np.float32),
            "coefficients": coefficients,
            "noise": noise,
        }
        self._step.run(inputs, {"x_next": earlier, "prediction": prediction})
        return earlier, prediction

    def sample(self, condition: Tensor, batch: int, guidance: float, steps: int, noise: Noise) -> Float32:
        """Run all steps; returns the residual × 0.6, [B, L, Z]."""
        rows = condition.shape[0] // 2 // batch
        shape = (rows, self.spec.latent_channels)
        x = self._memory.upload(np.concatenate([noise.diffusion_init(j, shape) for j in range(batch)]))
        for k, (timestep, constants) in enumerate(zip(timesteps(steps)[::-1], schedule(steps), strict=True)):
            z = np.concatenate([noise.diffusion_step(j, k, shape) for j in range(batch)])
            coefficients = np.append(constants, np.float32(effective_guidance(guidance)))
            x, _ = self.predict(x, condition, int(timestep), coefficients, z)
        return (self._memory.download(x) * RESIDUAL_GAIN).reshape(batch, rows, -1)
