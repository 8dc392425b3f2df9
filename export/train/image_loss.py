"""Reconstruction loss without a pretrained network: pixels, gradients and pooled pictures; and PSNR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def image_loss(picture: Tensor, target: Tensor, gradient: float = 0.5, pooled: float = 0.5) -> Tensor:
    """`L1 + MSE + gradient·L1(∇) + pooled·Σ L1(2×, 4× pooled)` of [B, 3, H, W] in −1…1."""
    difference = picture - target
    loss = difference.abs().mean() + difference.square().mean()
    across, down = difference[..., 1:] - difference[..., :-1], difference[..., 1:, :] - difference[..., :-1, :]
    loss = loss + gradient * (across.abs().mean() + down.abs().mean())
    for side in (2, 4):
        loss = loss + pooled * F.avg_pool2d(difference, side).abs().mean()
    return loss


@torch.no_grad()
def psnr(picture: Tensor, target: Tensor) -> Tensor:
    """dB of pictures [B, 3, H, W] in −1…1: each picture's own, then their mean."""
    error = (picture - target).float().square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return (10 * torch.log10(4 / error)).mean()
