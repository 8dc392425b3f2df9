"""One nn.Module per engine, built from the reference: the graphs that are exported.

Weights stand in the layout that the graph multiplies with (matrices [in, out]), so every parameter becomes one
initializer of the same name and `state_dict()` is exactly what the bundle's weights file must hold. Work that is the
same for every image is done here, once: level embeddings, the unconditional rows, the system prompt's keys and values.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Model

from .reference.diffusion import SimpleMLP
from .reference.embeddings import rms_norm, sinusoid
from .reference.hart import HartReference
from .reference.text import attention_mask, causal
from .reference.transformer import MAX_LOG_SCALE, Block, RMSNorm


class Linear(nn.Module):
    """`x @ weight + bias` with weight [in, out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Linear:
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Norm(nn.Module):
    """RMSNorm as one ONNX operator: float32 statistics, rounded to x's type, times weight."""

    def __init__(self, norm: RMSNorm | nn.Module, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.clone(), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return rms_norm(x, self.weight, self.eps)


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=False)


def swap_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1)


# ---- text ----


class TextLayer(nn.Module):
    """One Qwen2 decoder layer (grouped-query attention, SwiGLU) over [cached system prompt; prompt]."""

    def __init__(self, layer: nn.Module, config: object) -> None:
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
        self.embedding = _constant(model.embed_tokens.weight)
        self.layers = nn.ModuleList(TextLayer(layer, config) for layer in model.layers)
        self.norm = Norm(model.norm, config.rms_norm_eps)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", getattr(config, "rope_theta", 10000.0))
        self.skip = len(system_ids)
        cos, sin = _text_rotary(self.skip + tokens, head_dim, theta)
        self.cos, self.sin = _constant(cos[self.skip :]), _constant(sin[self.skip :])
        self.system_k = self.system_v = None
        if self.skip:
            self._bake(system_ids, cos[: self.skip], sin[: self.skip])

    @torch.no_grad()
    def _bake(self, system_ids: Tensor, cos: Tensor, sin: Tensor) -> None:
        x, keys, values = self.embedding[system_ids][None], [], []
        for layer in self.layers:
            x, k, v = layer(x, cos, sin, causal(self.skip, self.skip), None)
            keys.append(k)
            values.append(v)
        self.system_k, self.system_v = _constant(torch.cat(keys)), _constant(torch.cat(values))  # [layers, kv_heads, S, D]

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


# ---- scale loop ----


class ContextEntry(nn.Module):
    """context [B, T, Ct] → x [B, T, C] and the head's scale and shift [2B, 1, C], conditional rows first."""

    def __init__(self, model: HartReference) -> None:
        super().__init__()
        t = model.transformer
        self.norm = Norm(t.context_norm, t.config.norm_eps) if t.config.use_context_norm else nn.Identity()
        self.embed = Linear.of(t.context_embed)
        self.ada = Linear.of(t.head_nm.ada_lin[1])
        self.level = _constant(t.level(0))
        zero = torch.zeros(1, 1, t.config.context_dim)
        scale, shift = t.head_nm.modulation(t.embed_context(zero))
        self.unconditional_scale, self.unconditional_shift = _constant(scale), _constant(shift)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e = self.embed(self.norm(context))
        scale, shift = self.ada(F.silu(e.amax(dim=1, keepdim=True))).chunk(2, dim=-1)
        rows = (context.shape[0], -1, -1)
        scale = torch.cat([scale, self.unconditional_scale.expand(*rows)])
        shift = torch.cat([shift, self.unconditional_shift.expand(*rows)])
        return e + self.level, scale, shift


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
        self.logit_scale = _constant(attention.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()) if attention.l2_norm else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, position: Tensor, length: Tensor
    ) -> tuple[Tensor, ...]:
        rows, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.logit_scale is not None:
            q, k = F.normalize(q, dim=-1) * self.logit_scale, F.normalize(k, dim=-1)
        q, k = q * cos + swap_halves(q) * sin, k * cos + swap_halves(k) * sin
        y, k_cache, v_cache = cached_attention(q, k, v, k_cache, v_cache, position, length, self.scale)
        x = x + self.proj(y.transpose(1, 2).reshape(rows, tokens, width))
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
        updated = []
        for i, layer in enumerate(self.layers):
            x, *pair = layer(x, rope_cos, rope_sin, caches[2 * i], caches[2 * i + 1], position, length)
            updated += pair
        logits = self.head(self.head_norm(x) * (1 + head_scale) + head_shift)
        return (x, logits.float(), *updated)


class Transition(nn.Module):
    """h, f_hat → f_hat with the scale's contribution, and the next scale's input for both guidance halves.

    Resizing comes in as matrices (`up` [G, p], `pool` [p', G]). All φ convolutions run as one and the scale's own is
    picked, which keeps the weights static; they are tiny. float32 throughout: f_hat accumulates over the scales.
    """

    def __init__(self, model: HartReference, dtype: torch.dtype) -> None:
        super().__init__()
        phi, t = model.vae.quantize.quant_resi, model.transformer
        self.ratio, self.count, self.dtype = phi.ratio, len(phi.qresi_ls), dtype
        self.phi_weight = _constant(torch.cat([conv.weight for conv in phi.qresi_ls]))
        self.phi_bias = _constant(torch.cat([conv.bias for conv in phi.qresi_ls]))
        self.embed = Linear.of(t.word_embed)
        self.levels = _constant(torch.stack([t.level(i) for i in range(len(model.patch_nums))]))

    def forward(self, h: Tensor, f_hat: Tensor, up: Tensor, pool: Tensor, scale: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        h = up @ h @ up.T
        batch, channels, grid, _ = f_hat.shape
        mixed = F.conv2d(h, self.phi_weight, self.phi_bias, padding=1).view(batch, self.count, channels, grid, grid)
        f_hat = f_hat + (1 - self.ratio) * h + self.ratio * mixed.index_select(1, phi)[:, 0]
        tokens = (pool @ f_hat @ pool.T).flatten(2).transpose(1, 2)
        x = (self.embed(tokens) + self.levels.index_select(0, scale + 1)).to(self.dtype)
        return f_hat, torch.cat([x, x])


# ---- residual and picture ----


class ResidualCondition(nn.Module):
    """hidden [2B, L, C], index [B, L] → embedded diffusion condition [2B·L, W]; the same for all steps."""

    def __init__(self, model: HartReference) -> None:
        super().__init__()
        t = model.transformer
        self.norm = Norm(t.decoder_norm, t.config.norm_eps)
        self.codebook = _constant(model.vae.quantize.embedding.weight)
        self.embed = Linear.of(t.word_embed)
        self.condition = Linear.of(t.diffloss.net.cond_embed)

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:
        word = self.embed(F.embedding(index, self.codebook))
        return self.condition(self.norm(hidden + torch.cat([word, word]))).flatten(0, 1)


class ResidualLayer(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.modulation = Linear.of(block.adaLN_modulation[1])
        self.norm_weight, self.norm_bias = _constant(block.in_ln.weight), _constant(block.in_ln.bias)
        self.first, self.second = Linear.of(block.mlp[0]), Linear.of(block.mlp[2])

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(y).chunk(3, dim=-1)
        normed = F.layer_norm(h, (h.shape[-1],), self.norm_weight, self.norm_bias, 1e-6)
        return h + gate * self.second(F.silu(self.first(normed * (1 + scale) + shift)))


class ResidualStep(nn.Module):
    """One DDPM step for any schedule: x [N, Z], condition [2N, W] → x one step earlier, guided (eps, v) [N, 2Z].

    `coefficients` [8] float32 are those of `runtime.diffusion.COEFFICIENTS`. State, guidance and posterior are
    float32; only the network runs in the bundle's precision.
    """

    def __init__(self, net: SimpleMLP, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.channels = dtype, net.input_proj.in_features
        self.time_first, self.time_second = Linear.of(net.time_embed.mlp[0]), Linear.of(net.time_embed.mlp[2])
        self.input = Linear.of(net.input_proj)
        self.layers = nn.ModuleList(ResidualLayer(block) for block in net.res_blocks)
        self.final_modulation = Linear.of(net.final_layer.adaLN_modulation[1])
        self.final = Linear.of(net.final_layer.linear)

    def forward(self, x: Tensor, condition: Tensor, timestep: Tensor, coefficients: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        recip, recip_minus_1, mean_x0, mean_xt, log_beta, log_posterior, gain, t = coefficients.unbind(0)
        raw = self._network(x.to(self.dtype), condition, timestep).float()
        (eps_c, v), eps_u = raw[: x.shape[0]].split(self.channels, dim=-1), raw[x.shape[0] :, : self.channels]
        eps = (1 + t) * eps_c - t * eps_u
        x0 = (recip * x - recip_minus_1 * eps).clamp(-1, 1)
        fraction = (v + 1) / 2
        log_variance = fraction * log_beta + (1 - fraction) * log_posterior
        earlier = mean_x0 * x0 + mean_xt * x + gain * torch.exp(0.5 * log_variance) * noise
        return earlier, torch.cat([eps, v], dim=-1)

    def _network(self, x: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        y = self.time_second(F.silu(self.time_first(sinusoid(timestep).to(self.dtype)))) + condition
        y = F.silu(y)
        h = self.input(x)
        h = torch.cat([h, h])
        for layer in self.layers:
            h = layer(h, y)
        shift, scale = self.final_modulation(y).chunk(2, dim=-1)
        return self.final(F.layer_norm(h, (h.shape[-1],), eps=1e-6) * (1 + scale) + shift)


class PictureDecoder(nn.Module):
    """f_hat [B, Z, G, G] float32 → image [B, H, W, 3] uint8 (rounded) and decoded [B, 3, H, W] float32 in −1…1."""

    def __init__(self, model: HartReference, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.post_quant_conv, self.decoder = copy.deepcopy(model.vae.post_quant_conv), copy.deepcopy(model.vae.decoder)

    def forward(self, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        decoded = self.decoder(self.post_quant_conv(f_hat.to(self.dtype))).float().clamp(-1, 1)
        image = ((decoded * 0.5 + 0.5) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
        return image.contiguous(), decoded
