"""The scale-wise transformer: blocks, KV cache and adaptive head. Knows nothing of images, noise or sampling.

Parameter names are those of the published checkpoint, so `load_state_dict` takes it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AutoencoderConfig, TransformerConfig
from .diffusion import DiffusionHead
from .embeddings import TimestepEmbedder, apply_rotary, rms_norm

MAX_LOG_SCALE = math.log(100)  # cap of the learned logit scale when attn_l2_norm is on
Rotate = Callable[[Tensor], Tensor]


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerCache:
    """Keys and values of one layer, [R, H, L, D]; grows with every scale."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k, self.v


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads = config.embed_dim, config.num_heads
        self.l2_norm = config.attn_l2_norm
        self.scale = 1.0 if self.l2_norm else 0.25 / math.sqrt(config.head_dim)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        if self.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4.0)))

    def forward(self, x: Tensor, rotate: Rotate, cache: LayerCache, mask: Tensor | None) -> Tensor:
        """x [R, L, C] → [R, L, C]; rotates q and k, appends k and v to the cache, attends to all of it.

        mask [L, total] bool (True: may attend) restricts attention in training; inference needs none.
        """
        rows, length, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv_proj.weight, bias).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [R, H, L, D]
        if self.l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
            k = F.normalize(k, dim=-1)
        k, v = cache.append(rotate(k), v)
        mixed = F.scaled_dot_product_attention(rotate(q), k, v, attn_mask=mask, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).reshape(rows, length, width))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm block; both norms share one weight."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ln_wo_grad = RMSNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(config)
        self.ffn = SwiGLU(config.embed_dim, config.mlp_hidden)

    def forward(self, x: Tensor, rotate: Rotate, cache: LayerCache, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_wo_grad(x), rotate, cache, mask)
        return x + self.ffn(self.ln_wo_grad(x))


class AdaptiveHeadNorm(nn.Module):
    """`rms(x)·(1 + scale) + shift`, scale and shift from the max-pooled context."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.ln_wo_grad = RMSNorm(width, eps)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def modulation(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context e [R, T, C] → scale, shift, each [R, 1, C]."""
        scale, shift = self.ada_lin(context.amax(dim=1, keepdim=True)).chunk(2, dim=-1)
        return scale, shift

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.ln_wo_grad(x) * (1 + scale) + shift


class HartTransformer(nn.Module):
    """All parameters of `llm/`: embeddings, blocks, head and the diffusion MLP (`diffloss`)."""

    def __init__(self, config: TransformerConfig, autoencoder: AutoencoderConfig) -> None:
        super().__init__()
        width, eps = config.embed_dim, config.norm_eps
        self.config = config
        self.word_embed = nn.Linear(autoencoder.z_channels, width)
        self.context_embed = nn.Linear(config.context_dim, width)
        self.context_norm = RMSNorm(config.context_dim, eps) if config.use_context_norm else nn.Identity()
        self.lvl_embed = TimestepEmbedder(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = AdaptiveHeadNorm(width, eps)
        self.head = nn.Linear(width, autoencoder.vocab_size)
        self.decoder_norm = RMSNorm(width, eps)
        self.diffloss = DiffusionHead(autoencoder.z_channels, width, config.diff_width, config.diff_depth)

    def level(self, scale: int) -> Tensor:
        """Level embedding of a scale, [C]."""
        index = torch.tensor([scale], device=self.head.weight.device)
        return self.lvl_embed(index)[0]

    def embed_context(self, context: Tensor) -> Tensor:
        """context [R, T, Ct] → e [R, T, C], without the level term."""
        return self.context_embed(self.context_norm(context))

    def new_cache(self) -> list[LayerCache]:
        return [LayerCache() for _ in self.blocks]

    def run_blocks(self, x: Tensor, rotate: Rotate, caches: list[LayerCache], mask: Tensor | None = None) -> Tensor:
        """x [R, L, C] → hidden [R, L, C], the output of the last block."""
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, rotate, cache, mask)
        return x

    def logits(self, hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """hidden [R, L, C] → logits [R, L, V] float32."""
        return self.head(self.head_nm(hidden, scale, shift)).float()


def rotary(first: Tensor, second: Tensor) -> Rotate:
    """Close over the angle tables of one scale."""
    return lambda x: apply_rotary(x, first, second)
