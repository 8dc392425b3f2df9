"""The decoder's graph: latent to 8-bit picture."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..reference.hart import HartReference
from .layers import GroupNorm


class PictureDecoder(nn.Module):
    """f_hat [B, Z, G, G] float32 → image [B, H, W, 3] uint8 (rounded) and decoded [B, 3, H, W] float32 in −1…1."""

    def __init__(self, model: HartReference, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.post_quant_conv, self.decoder = copy.deepcopy(model.vae.post_quant_conv), copy.deepcopy(model.vae.decoder)
        for name, norm in [(n, m) for n, m in self.decoder.named_modules() if isinstance(m, nn.GroupNorm)]:
            self.decoder.set_submodule(name, GroupNorm(norm))

    def forward(self, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        decoded = self.decoder(self.post_quant_conv(f_hat.to(self.dtype))).float().clamp(-1, 1)
        image = ((decoded * 0.5 + 0.5) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
        return image.contiguous(), decoded
