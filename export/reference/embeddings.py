"""Position and level information: the sinusoidal embedder and the two rotary tables.

Source of the formulas: HART (arXiv 2410.10812) and its published inference code, as its recorded runs show them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCY_WIDTH = 256


def sinusoid(t: Tensor, width: int = FREQUENCY_WIDTH) -> Tensor:
    """`[cos(t·f_k), sin(t·f_k)]`, `f_k = exp(-ln(10000)·k/(width/2))`: t [N] → [N, width] float32."""
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Linear → SiLU → Linear over `sinusoid(t)`; embeds scale indices and diffusion timesteps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """t [N] → [N, width]."""
        embedded: Tensor = self.mlp(sinusoid(t).to(self.mlp[0].weight.dtype))
        return embedded


def text_angles(position_ids: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """1-D rotary angles of the context tokens: position_ids [R, T] → two equal tables [R, T, D/2] float32."""
    frequency = _inverse_frequency(head_dim // 2, head_dim, position_ids.device, exponent=2)
    angle = position_ids[..., None].float() * frequency
    return angle, angle


def image_angles(patch_num: int, grid: int, offset: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """2-D rotary angles of one scale, row table and column table.

    Token (r, c) stands at `r/p·G + off`, `c/p·G + off`; each table repeats its D/4 frequencies twice.
    offset [R] → (θ_row, θ_col), each [R, p², D/2] float32.
    """
    frequency = _inverse_frequency(head_dim // 4, head_dim, offset.device, exponent=4)
    place = torch.arange(patch_num, dtype=torch.float32, device=offset.device) / patch_num * grid
    row = place.repeat_interleave(patch_num)[None] + offset[:, None].float()
    col = place.repeat(patch_num)[None] + offset[:, None].float()
    return tuple((axis[..., None] * frequency).repeat(1, 1, 2) for axis in (row, col))  # type: ignore[return-value]


def apply_rotary(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`[x1·cos a − x2·sin a, x2·cos b + x1·sin b]` with the halves x1, x2 of x [R, H, L, D]; a, b [R, L, D/2].

    With a = b this is the usual rotary embedding; HART's image tokens use a = θ_row, b = θ_col, which is no rotation.
    Sines and cosines are taken in the angles' own type: in float16 an angle of 100 is off by up to 0.03.
    """
    x1, x2 = x.chunk(2, dim=-1)
    (cos_a, sin_a), (cos_b, sin_b) = (_waves(angle[:, None], x.dtype) for angle in (first, second))
    return torch.cat([x1 * cos_a - x2 * sin_a, x2 * cos_b + x1 * sin_b], dim=-1)


def _waves(angle: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps)` in float32, rounded to x's type, times weight."""
    return F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype) * weight


def _inverse_frequency(count: int, head_dim: int, device: torch.device, exponent: int) -> Tensor:
    j = torch.arange(count, dtype=torch.float32, device=device)
    return 1.0 / (10000.0 ** (exponent * j / head_dim))
