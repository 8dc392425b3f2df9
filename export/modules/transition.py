"""The graph between two scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reference.hart import HartReference
from .layers import Linear, computed, copied


class Transition(nn.Module):
    """h, f_hat → f_hat with the scale's contribution, and the next scale's input for both guidance halves.

    Resizing comes in as matrices (`up` [G, p], `pool` [p', G]). All φ convolutions run as one and the scale's own is
    picked, which keeps the weights static; they are tiny. float32 throughout: f_hat accumulates over the scales.
    """

    def __init__(self, model: HartReference, dtype: torch.dtype) -> None:
        super().__init__()
        phi, t = model.vae.quantize.quant_resi, model.transformer
        self.ratio, self.count, self.dtype = phi.ratio, len(phi.qresi_ls), dtype
        self.phi_weight = copied(torch.cat([conv.weight for conv in phi.qresi_ls]))
        self.phi_bias = copied(torch.cat([conv.bias for conv in phi.qresi_ls]))
        self.embed = Linear.of(t.word_embed)
        self.levels = computed(torch.stack([t.level(i) for i in range(len(model.patch_nums))]))

    def forward(self, h: Tensor, f_hat: Tensor, up: Tensor, pool: Tensor, scale: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        h = up @ h @ up.T
        batch, channels, grid, _ = f_hat.shape
        mixed = F.conv2d(h, self.phi_weight, self.phi_bias, padding=1).view(batch, self.count, channels, grid, grid)
        f_hat = f_hat + (1 - self.ratio) * h + self.ratio * mixed.index_select(1, phi)[:, 0]
        tokens = (pool @ f_hat @ pool.T).flatten(2).transpose(1, 2)
        x = (self.embed(tokens) + self.levels.index_select(0, scale + 1)).to(self.dtype)
        return f_hat, torch.cat([x, x])
