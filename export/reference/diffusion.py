"""Residual diffusion: the cosine schedule, one DDPM step, and the MLP that predicts noise and variance.

Schedule after Nichol & Dhariwal (arXiv 2102.09672) with respaced timesteps; network after MAR (arXiv 2406.11838).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import TimestepEmbedder

TRAIN_STEPS = 1000
RESIDUAL_GAIN = 0.6  # the published sampler scales its result by this


@dataclass(frozen=True)
class Schedule:
    """Respaced DDPM constants, float64 arrays of length n, in ascending time."""

    timesteps: np.ndarray
    alpha_bar: np.ndarray
    beta: np.ndarray
    posterior_log_variance: np.ndarray  # log β̃, its first entry clipped to the second
    mean_x0: np.ndarray
    mean_xt: np.ndarray

    @classmethod
    def cosine(cls, steps: int) -> Schedule:
        """Keep `steps` of the 1000 training timesteps and recompute β from the kept ᾱ."""
        full = _cosine_alpha_bar()
        timesteps = np.array([round(t) for t in np.linspace(0, TRAIN_STEPS - 1, steps)]) if steps > 1 else np.zeros(1, int)
        alpha_bar = full[timesteps]
        previous = np.append(1.0, alpha_bar[:-1])
        beta = 1 - alpha_bar / previous
        variance = beta * (1 - previous) / (1 - alpha_bar)
        clipped = np.append(variance[1:2], variance[1:]) if steps > 1 else beta
        return cls(
            timesteps=timesteps,
            alpha_bar=alpha_bar,
            beta=beta,
            posterior_log_variance=np.log(clipped),
            mean_x0=beta * np.sqrt(previous) / (1 - alpha_bar),
            mean_xt=(1 - previous) * np.sqrt(1 - beta) / (1 - alpha_bar),
        )

    def step(self, k: int, x: Tensor, eps: Tensor, v: Tensor, noise: Tensor) -> Tensor:
        """x_t → x_{t-1} at index k (ascending): clipped x0, posterior mean, interpolated log-variance."""
        alpha_bar = self.alpha_bar[k]
        x0 = (math.sqrt(1 / alpha_bar) * x - math.sqrt(1 / alpha_bar - 1) * eps).clamp(-1, 1)
        mean = self.mean_x0[k] * x0 + self.mean_xt[k] * x
        fraction = (v + 1) / 2
        log_variance = fraction * math.log(self.beta[k]) + (1 - fraction) * self.posterior_log_variance[k]
        return mean if k == 0 else mean + torch.exp(0.5 * log_variance) * noise


def _cosine_alpha_bar() -> np.ndarray:
    """ᾱ of the 1000 training steps: `cos²((t + 0.008)/1.008·π/2)` with β capped at 0.999."""
    t = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
    ideal = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = np.minimum(1 - ideal[1:] / ideal[:-1], 0.999)
    return np.cumprod(1 - beta)


class ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return h + gate * self.mlp(self.in_ln(h) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(F.layer_norm(h, (h.shape[-1],), eps=1e-6) * (1 + scale) + shift)


class SimpleMLP(nn.Module):
    """SimpleMLPAdaLN: x [N, Z], timesteps [N], condition z [N, C] → (eps, v) as one tensor [N, 2Z]."""

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        h = self.input_proj(x)
        y = self.time_embed(t) + self.cond_embed(z)
        for block in self.res_blocks:
            h = block(h, y)
        return self.final_layer(h, y)


class DiffusionHead(nn.Module):
    """The `diffloss` submodule of the checkpoint."""

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.net = SimpleMLP(channels, condition, width, depth)

    def predict(self, x: Tensor, timestep: int, z: Tensor) -> Tensor:
        """Both guidance halves see the same x: x [N, Z], z [2N, C] → (eps, v) [2N, 2Z]."""
        t = torch.full((z.shape[0],), timestep, device=x.device)
        return self.net(torch.cat([x, x]), t, z)

    def guided(self, prediction: Tensor, guidance: float) -> Tensor:
        """Replace both halves' eps by (1+t)·eps_c − t·eps_u; t = 1 leaves them, as the published sampler does. [2N, 2Z]."""
        if guidance == 1.0:
            return prediction
        eps_c, eps_u = prediction[:, : self.channels].chunk(2)
        eps = (1 + guidance) * eps_c - guidance * eps_u
        return torch.cat([torch.cat([eps, eps]), prediction[:, self.channels :]], dim=1)
