"""The text encoder's graph: a Qwen2 decoder with the system prompt's keys and values baked in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from ..reference.text import attention_mask, causal
from .layers import Linear, Norm, computed, copied, swap_halves


class TextLayer(nn.Module):
    """One Qwen2 decoder layer (grouped-query attention, SwiGLU) over [cached system prompt; prompt]."""

    def __init__(self, layer: nn.Module, config: Qwen2Config) -> None:
        super().__init__()
        attention, mlp, eps = layer.self_attn, layer.mlp, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q, self.k, self.v, self.o = (Linear.of(getattr(attention, f"{n}_proj")) for n in "qkvo")
        self.gate, self.up, self.down = (Linear.of(getattr(mlp, f"{n}_proj")) for n in ("gate", "up", "down"))
        self.attention_norm = Norm(layer.input_layernorm, eps)
        self.mlp_norm = Norm(layer.post_attention_layernorm, eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, allowed: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, Ct] → (x, k, v); past: the system prompt's (k, v), each [1, kv_heads, S, D]."""
        h = self.attention_norm(x)
        q, k, v = self._heads(self.q(h), self.heads), self._heads(self.k(h), self.kv_heads), self._heads(self.v(h), self.kv_heads)
        q, k = q * cos + swap_halves(q) * sin, k * cos + swap_halves(k) * sin
        all_k, all_v = (k, v) if past is None else (_after(past[0], k), _after(past[1], v))
        y = F.scaled_dot_product_attention(q, all_k, all_v, attn_mask=allowed, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)), k, v

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _after(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.expand(new.shape[0], -1, -1, -1), new], dim=2)


class TextEncoder(nn.Module):
    """input_ids, attention_mask [B, T] int64 → context [B, T, Ct].

    Args:
        model: transformers' Qwen2 decoder.
        system_ids: [S] int64, the system prompt's tokens; their keys and values become constants.
        tokens: T.
    """

    def __init__(self, model: Qwen2Model, system_ids: Tensor, tokens: int) -> None:
        super().__init__()
        config = model.config
        self.embedding = copied(model.embed_tokens.weight)
        self.layers = nn.ModuleList(TextLayer(layer, config) for layer in model.layers)
        self.norm = Norm(model.norm, config.rms_norm_eps)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", getattr(config, "rope_theta", 10000.0))
        self.skip = len(system_ids)
        cos, sin = _text_rotary(self.skip + tokens, head_dim, theta)
        self.cos, self.sin = computed(cos[self.skip :]), computed(sin[self.skip :])
        if self.skip:
            k, v = self._system_cache(system_ids, cos[: self.skip], sin[: self.skip])
            self.system_k, self.system_v = computed(k), computed(v)

    @torch.no_grad()
    def _system_cache(self, system_ids: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The system prompt's keys and values, each [layers, kv_heads, S, D]."""
        x, keys, values = self.embedding[system_ids][None], [], []
        for layer in self.layers:
            x, k, v = layer(x, cos, sin, causal(self.skip, self.skip), None)
            keys.append(k)
            values.append(v)
        return torch.cat(keys), torch.cat(values)

    def forward(self, input_ids: Tensor, attention_mask_: Tensor) -> Tensor:
        allowed = attention_mask(attention_mask_, self.skip)
        x = F.embedding(input_ids, self.embedding)
        for i, layer in enumerate(self.layers):
            past = (self.system_k[i : i + 1], self.system_v[i : i + 1]) if self.skip else None
            x, _, _ = layer(x, self.cos, self.sin, allowed, past)
        return self.norm(x)


def _text_rotary(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [length, D] with the sign of `x·cos + swap(x)·sin` folded into sin."""
    frequency = 1.0 / (theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    angle = torch.outer(torch.arange(length).float(), frequency)
    return torch.cat([angle.cos(), angle.cos()], dim=-1), torch.cat([-angle.sin(), angle.sin()], dim=-1)
