"""What stage 2 trains, as one module: transformer with diffusion head, and text encoder. Their initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Model

from ..reference.transformer import HartTransformer

SPREAD = 0.02  # of embeddings and heads


class Joint(nn.Module):
    """`reader` says from the text's last hidden state what a caption claims; it exists in training only.

    HART's text model already knows English; ours starts from nothing, and pictures alone teach it to read slowly.
    """

    def __init__(self, transformer: HartTransformer, text: Qwen2Model, claim_sizes: Sequence[int]) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text
        self.claim_sizes = list(claim_sizes)
        self.reader = nn.Linear(transformer.config.context_dim, sum(claim_sizes))
        initialise(transformer)

    def reading_loss(self, hidden: Tensor, positions: Tensor, claims: Tensor) -> Tensor:
        """hidden [B, T, Ct], positions [B, T] (ending at each caption's last token), claims [B, K] → mean cross-entropy."""
        last = hidden[torch.arange(len(hidden), device=hidden.device), positions[:, -1]]
        parts = self.reader(last).float().split(self.claim_sizes, dim=1)
        return torch.stack([F.cross_entropy(part, claim) for part, claim in zip(parts, claims.T, strict=True)]).mean()

    def matrices(self) -> list[nn.Parameter]:
        """Weights of the blocks of all three networks: what Muon is for."""
        blocks = (self.transformer.blocks, self.text.layers, self.transformer.diffloss.net.res_blocks)
        return [p for block in blocks for p in block.parameters() if p.dim() == 2]


@torch.no_grad()
def initialise(model: HartTransformer) -> None:
    """Linear maps with deviation 1/√(3·in); what adds to the residual stream less, by depth; modulations start at zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(3 * module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.blocks:
        block.attn.proj.weight.div_(math.sqrt(2 * len(model.blocks)))
        block.ffn.down_proj.weight.div_(math.sqrt(2 * len(model.blocks)))
    nn.init.trunc_normal_(model.head.weight, std=SPREAD)
    net = model.diffloss.net
    zeros = [model.head_nm.ada_lin[-1], net.final_layer.linear, net.final_layer.adaLN_modulation[-1]]
    for layer in [*zeros, *(block.adaLN_modulation[-1] for block in net.res_blocks)]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for embedder in (model.lvl_embed, net.time_embed):
        for index in (0, 2):
            nn.init.normal_(embedder.mlp[index].weight, std=SPREAD)
