"""The multi-scale residual quantiser: codebook, φ convolutions, transition between scales, encoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AutoencoderConfig


def phi_ticks(count: int) -> np.ndarray:
    """Positions in 0…1 of the shared φ convolutions; four of them are spaced as in VAR (arXiv 2404.02905)."""
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    return np.linspace(margin, 1 - margin, count)


def phi_index(scale: int, scales: int, count: int) -> int:
    """Which of `count` φ convolutions scale `scale` of `scales` uses: the nearest tick to i/(S−1)."""
    return int(np.argmin(np.abs(phi_ticks(count) - scale / (scales - 1))))


class PhiSet(nn.Module):
    def __init__(self, channels: int, count: int, ratio: float) -> None:
        super().__init__()
        self.ratio = abs(ratio)
        self.qresi_ls = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))

    def forward(self, h: Tensor, scale: int, scales: int) -> Tensor:
        conv = self.qresi_ls[phi_index(scale, scales, len(self.qresi_ls))]
        return (1 - self.ratio) * h + self.ratio * conv(h)


class HybridQuantizer(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.patch_nums = config.patch_nums
        self.embedding = nn.Embedding(config.vocab_size, config.z_channels)
        self.quant_resi = PhiSet(config.z_channels, config.share_quant_resi, config.quant_resi)

    @property
    def grid(self) -> int:
        return self.patch_nums[-1]

    def upsample(self, h: Tensor, scale: int) -> Tensor:
        """h [B, Z, p, p] → its contribution to f_hat [B, Z, G, G]: bicubic, then φ."""
        up = F.interpolate(h, size=(self.grid, self.grid), mode="bicubic")
        return self.quant_resi(up, scale, len(self.patch_nums))

    def pool(self, f_hat: Tensor, scale: int) -> Tensor:
        """f_hat [B, Z, G, G] → area-pooled input of `scale`, [B, Z, p, p]."""
        side = self.patch_nums[scale]
        return F.interpolate(f_hat, size=(side, side), mode="area")

    def nearest(self, cells: Tensor) -> Tensor:
        """cells [N, Z] → index of the nearest code by squared distance, [N] int64."""
        codes = self.embedding.weight
        distance = cells.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * cells @ codes.T
        return distance.argmin(dim=1)

    def encode(self, f: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Latent f [B, Z, G, G] → (indices per scale [B, p²], residual [B, G², Z], f_hat of the codes alone).

        The residual is what is left before the last scale's code is subtracted: the target of hybrid decoding.
        """
        rest, f_hat = f.clone(), torch.zeros_like(f)
        indices: list[Tensor] = []
        residual = rest
        for scale, side in enumerate(self.patch_nums):
            last = scale == len(self.patch_nums) - 1
            pooled = rest if last else F.interpolate(rest, size=(side, side), mode="area")
            index = self.nearest(pooled.permute(0, 2, 3, 1).reshape(-1, f.shape[1]))
            h = self.lookup(index.view(f.shape[0], -1), side)
            if last:
                residual = rest.flatten(2).transpose(1, 2)
            h = h if last else self.upsample(h, scale)
            f_hat, rest = f_hat + h, rest - h
            indices.append(index.view(f.shape[0], -1))
        return indices, residual, f_hat

    def lookup(self, index: Tensor, side: int) -> Tensor:
        """index [B, p²] → codes [B, Z, p, p]."""
        return self.embedding(index).transpose(1, 2).reshape(index.shape[0], -1, side, side)

    def inputs_of(self, indices: Sequence[Tensor]) -> list[Tensor]:
        """Teacher-forcing inputs: the pooled f_hat [B, Z, p, p] that every scale after the first would see."""
        f_hat = torch.zeros(indices[0].shape[0], self.embedding.weight.shape[1], self.grid, self.grid, device=indices[0].device)
        inputs = []
        for scale, index in enumerate(indices[:-1]):
            f_hat = f_hat + self.upsample(self.lookup(index, self.patch_nums[scale]), scale)
            inputs.append(self.pool(f_hat, scale + 1))
        return inputs
