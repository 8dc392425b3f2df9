"""The loss of the residual diffusion: noise prediction with learned variance (Nichol & Dhariwal, arXiv 2102.09672)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..reference.diffusion import RESIDUAL_GAIN, TRAIN_STEPS, Schedule, SimpleMLP


class DiffusionLoss:
    """`L = ‖ε − ε_θ‖² + 0.001·L_vlb`, one uniform timestep a draw, so that `L_vlb = 1000·KL_t`.

    `KL_t = KL(q(x_{t−1}|x_t, x0) ‖ p_θ(x_{t−1}|x_t))` in bits per entry trains only the variance: ε_θ is held in the
    mean. At t = 0, where sampling adds no noise, the clipped posterior variance takes the place of the decoder's
    likelihood.
    """

    def __init__(self, device: torch.device) -> None:
        schedule = Schedule.cosine(TRAIN_STEPS)
        columns = {
            "signal": np.sqrt(schedule.alpha_bar),
            "noise": np.sqrt(1 - schedule.alpha_bar),
            "log_beta": np.log(schedule.beta),
            "log_posterior": schedule.posterior_log_variance,
            "mean_x0": schedule.mean_x0,
            "mean_xt": schedule.mean_xt,
        }
        self.columns = {key: torch.tensor(value, dtype=torch.float32, device=device) for key, value in columns.items()}

    def __call__(self, net: SimpleMLP, target: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """target, noise [N, Z], condition z [N, C], t [N] → mean ‖ε − ε_θ‖², mean KL_t."""
        c = {key: column[t][:, None] for key, column in self.columns.items()}
        x_t = c["signal"] * target + c["noise"] * noise
        eps, v = net(x_t, t, z).float().chunk(2, dim=-1)
        mse = (eps - noise).square().mean()
        # x0 − x0_θ = noise/signal·(ε_θ − ε), so both means differ by mean_x0 times that.
        gap = c["mean_x0"] * c["noise"] / c["signal"] * (eps.detach() - noise)
        fraction = (v + 1) / 2
        log_variance = fraction * c["log_beta"] + (1 - fraction) * c["log_posterior"]
        difference = c["log_posterior"] - log_variance
        kl = 0.5 * (-1 - difference + difference.exp() + gap.square() * (-log_variance).exp())
        return mse, kl.mean() / math.log(2)


def residual_target(residual: Tensor, code: Tensor) -> Tensor:
    """What the sampler, whose result is multiplied by 0.6 and clipped to ±0.6, has to give: (residual − code)/0.6 in −1…1."""
    return ((residual - code) / RESIDUAL_GAIN).clamp(-1, 1)
