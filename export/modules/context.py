"""The context engine's graph: text conditioning to the input of scale 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reference.hart import HartReference
from .layers import Linear, Norm, computed


class ContextEntry(nn.Module):
    """context [B, T, Ct] → x [B, T, C] and the head's scale and shift [2B, 1, C], conditional rows first."""

    def __init__(self, model: HartReference) -> None:
        super().__init__()
        t = model.transformer
        self.norm = Norm(t.context_norm, t.config.norm_eps) if t.config.use_context_norm else nn.Identity()
        self.embed = Linear.of(t.context_embed)
        self.ada = Linear.of(t.head_nm.ada_lin[1])
        self.level = computed(t.level(0))
        zero = torch.zeros(1, 1, t.config.context_dim)
        scale, shift = t.head_nm.modulation(t.embed_context(zero))
        self.unconditional_scale, self.unconditional_shift = computed(scale), computed(shift)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e = self.embed(self.norm(context))
        scale, shift = self.ada(F.silu(e.amax(dim=1, keepdim=True))).chunk(2, dim=-1)
        rows = (context.shape[0], -1, -1)
        scale = torch.cat([scale, self.unconditional_scale.expand(*rows)])
        shift = torch.cat([shift, self.unconditional_shift.expand(*rows)])
        return e + self.level, scale, shift
