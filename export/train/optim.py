"""Learning rate, parameter groups and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FLOOR = 0.01  # of the peak learning rate, at the end of the stage


def learning_rate(peak: float, step: int, progress: float, warmup: int) -> float:
    """Linear over `warmup` steps, times a cosine over `progress` 0…1 from the peak to FLOOR of it."""
    cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / warmup) * cosine


def groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices with weight decay, vectors without."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in module.parameters() if p.requires_grad and p.dim() < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def adamw(parameters: Iterable[Any], lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; every group remembers its factor on the learning rate under `factor`."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, fused=torch.cuda.is_available())
    for group in optimizer.param_groups:
        group.setdefault("factor", 1.0)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


class Average:
    """Exponential moving average of a module's parameters, as a module of its own.

    `decay_n = min(decay, (1 + n)/(10 + n))`, so that early weights are forgotten soon.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), [p.detach() for p in module.parameters()], 1 - decay)


def descend(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average, lr: float, step: int) -> Tensor:
    """One update at rate `lr`, gradients clipped to norm 1, averaged; returns the norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    set_learning_rate(optimizer, lr)
    optimizer.step()
    average.update(module, step)
    return norm
