"""The transformer's graph: one for all scales, cache in and out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reference.hart import HartReference
from ..reference.transformer import MAX_LOG_SCALE, Block
from .layers import Linear, Norm, computed, swap_halves


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, position: Tensor, length: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """`hart::CachedAttention`: one node in an exported graph, the same computation in eager mode."""
    if torch.onnx.is_in_onnx_export():
        inputs = (q, k, v, k_cache, v_cache, position, length)
        kinds = {"dtypes": (q.dtype,) * 3, "shapes": (q.shape, k_cache.shape, v_cache.shape)}
        return tuple(torch.onnx.ops.symbolic_multi_out("hart::CachedAttention", inputs, {"scale": scale}, version=1, **kinds))
    start, stop = int(position[0]), int(length[0])
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    k_cache[:, :, start:stop], v_cache[:, :, start:stop] = k, v
    y = F.scaled_dot_product_attention(q, k_cache[:, :, :stop], v_cache[:, :, :stop], scale=scale)
    return y, k_cache, v_cache


class TransformerLayer(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        attention = block.attn
        bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
        self.heads, self.scale = attention.heads, attention.scale
        self.norm = Norm(block.ln_wo_grad, block.ln_wo_grad.eps)
        self.qkv = Linear(attention.qkv_proj.weight, bias)
        self.proj = Linear.of(attention.proj)
        self.gate, self.up, self.down = (Linear.of(getattr(block.ffn, f"{n}_proj")) for n in ("gate", "up", "down"))
        self.logit_scale = computed(attention.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()) if attention.l2_norm else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, position: Tensor, length: Tensor
    ) -> tuple[Tensor, ...]:
        """x [R·L, C]: two dimensions, so that a product and its bias become one Gemm."""
        (rows, _, tokens, _), width = cos.shape, x.shape[-1]
        qkv = self.qkv(self.norm(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.logit_scale is not None:
            q, k = F.normalize(q, dim=-1) * self.logit_scale, F.normalize(k, dim=-1)
        q, k = q * cos + swap_halves(q) * sin, k * cos + swap_halves(k) * sin
        y, k_cache, v_cache = cached_attention(q, k, v, k_cache, v_cache, position, length, self.scale)
        x = x + self.proj(y.transpose(1, 2).reshape(rows * tokens, width))
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)), k_cache, v_cache


class Transformer(nn.Module):
    """One graph for all scales: x [R, L, C] and the cache → hidden [R, L, C], logits [R, L, V] float32, the cache."""

    def __init__(self, model: HartReference) -> None:
        super().__init__()
        t = model.transformer
        self.layers = nn.ModuleList(TransformerLayer(block) for block in t.blocks)
        self.head_norm = Norm(t.head_nm.ln_wo_grad, t.config.norm_eps)
        self.head = Linear.of(t.head)

    def forward(
        self,
        x: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        head_scale: Tensor,
        head_shift: Tensor,
        position: Tensor,
        length: Tensor,
        caches: list[Tensor],
    ) -> tuple[Tensor, ...]:
        shape, updated = x.shape, []
        x = x.flatten(0, 1)
        for i, layer in enumerate(self.layers):
            x, *pair = layer(x, rope_cos, rope_sin, caches[2 * i], caches[2 * i + 1], position, length)
            updated += pair
        modulated = self.head_norm(x).view(shape) * (1 + head_scale) + head_shift
        logits = self.head(modulated.flatten(0, 1)).float()
        return (x.view(shape), logits.view(*shape[:2], -1), *updated)
