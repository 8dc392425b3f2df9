"""Learning rate, parameter groups and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .graphs import clear_gradients
from .muon import StackedMuon

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


def muon(parameters: Sequence[Tensor], lr: float, decay: float) -> torch.optim.Optimizer:
    """Muon (Jordan et al., 2024) for the matrices of blocks, its steps as large as AdamW's (arXiv 2502.16982)."""
    optimizer = StackedMuon(parameters, lr, decay)
    for group in optimizer.param_groups:
        group["factor"] = 1.0
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


def backward(loss: Tensor, module: nn.Module) -> Tensor:
    """Gradients of `loss`, clipped to norm 1; returns the norm before clipping."""
    clear_gradients(module)
    loss.backward()
    return nn.utils.clip_grad_norm_(module.parameters(), 1.0)


def descend(optimizers: Sequence[torch.optim.Optimizer], module: nn.Module, average: Average, lr: float, step: int) -> None:
    """One update at rate `lr` with the gradients that are there, averaged."""
    for optimizer in optimizers:
        set_learning_rate(optimizer, lr)
        optimizer.step()
    average.update(module, step)
