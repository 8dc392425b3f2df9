"""Guidance, truncation and token choice of the reference, in float32 torch. Noise always comes from outside."""

from __future__ import annotations

import torch
from torch import Tensor


def ratio(scale: int, scales: int) -> float:
    """i/(S−1); the last scale keeps the value of the one before it, as the published sampler does."""
    return min(scale, scales - 2) / (scales - 1)


def guidance(cfg: float, scale: int, scales: int) -> float:
    """Guidance weight t of a scale: cfg·ratio."""
    return cfg * ratio(scale, scales)


def default_top_k(scale: int) -> int:
    """600 for the first seven scales, then 300."""
    return 600 if scale < 7 else 300


def temperature(r: float) -> float:
    """Gumbel-softmax temperature of smooth sampling: `max(0.27·(1 − 0.95·ratio), 0.005)`."""
    return max(0.27 * (1 - 0.95 * r), 0.005)


def guide(conditional: Tensor, unconditional: Tensor, t: float) -> Tensor:
    return (1 + t) * conditional - t * unconditional


def truncate(logits: Tensor, top_k: int, top_p: float = 0.0) -> Tensor:
    """−∞ outside the top k (ties kept) and, when 0 < top_p < 1, outside the nucleus of what is left. [..., V]."""
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if 0 < top_p < 1:
        ordered, order = logits.sort(dim=-1)
        drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def choose(masked: Tensor, gumbel: Tensor) -> Tensor:
    """Gumbel-max: an index of Categorical(softmax(masked)), [...]."""
    return (masked + gumbel).argmax(dim=-1)


def smooth_codes(masked: Tensor, gumbel: Tensor, r: float, codebook: Tensor) -> Tensor:
    """`softmax((masked·(1+ratio) + gumbel)/τ) @ codebook`: [..., V], [V, Z] → [..., Z]."""
    return torch.softmax((masked * (1 + r) + gumbel) / temperature(r), dim=-1) @ codebook
