"""The residual diffusion's graphs: condition, and one denoising step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reference.diffusion import SimpleMLP
from ..reference.embeddings import sinusoid
from ..reference.hart import HartReference
from .layers import Linear, Norm, copied


class ResidualCondition(nn.Module):
    """hidden [2B, L, C], index [B, L] → embedded diffusion condition [2B·L, W]; the same for all steps."""

    def __init__(self, model: HartReference) -> None:
        super().__init__()
        t = model.transformer
        self.norm = Norm(t.decoder_norm, t.config.norm_eps)
        self.codebook = copied(model.vae.quantize.embedding.weight)
        self.embed = Linear.of(t.word_embed)
        self.condition = Linear.of(t.diffloss.net.cond_embed)

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:
        word = self.embed(F.embedding(index, self.codebook))
        return self.condition(self.norm(hidden + torch.cat([word, word]))).flatten(0, 1)


class ResidualLayer(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.modulation = Linear.of(block.adaLN_modulation[1])
        self.norm_weight, self.norm_bias = copied(block.in_ln.weight), copied(block.in_ln.bias)
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
