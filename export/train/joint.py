"""What stage 2 trains, as one module: transformer with diffusion head, and text encoder. Their initial weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import Qwen2Model

from ..reference.transformer import HartTransformer

SPREAD = 0.02  # of embeddings and heads


class Joint(nn.Module):
    def __init__(self, transformer: HartTransformer, text: Qwen2Model) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text
        initialise(transformer)


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
