"""Building blocks of the exported graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reference.embeddings import rms_norm
from ..reference.transformer import RMSNorm


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


def copied(value: Tensor) -> nn.Parameter:
    """A weight of the checkpoint, unchanged but for its type: verification compares it exactly."""
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=False)


def computed(value: Tensor) -> nn.Buffer:
    """A tensor computed from weights at export: verification allows rounding."""
    return nn.Buffer(value.detach().clone().contiguous())


class GroupNorm(nn.Module):
    """Group normalisation as InstanceNormalization over [B, groups, rest], which ONNX Runtime has a kernel for.

    GroupNormalization itself is expanded to a chain of elementwise operators there.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = copied(norm.weight), copied(norm.bias)
        self.groups, self.eps = norm.num_groups, norm.eps
        self.one, self.zero = computed(torch.ones(self.groups)), computed(torch.zeros(self.groups))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        grouped = x.view(x.shape[0], self.groups, -1)
        inputs = (grouped, self.one, self.zero)
        normed = torch.onnx.ops.symbolic("InstanceNormalization", inputs, {"epsilon": self.eps}, dtype=x.dtype, shape=grouped.shape)
        return normed.view(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


def swap_halves(x: Tensor) -> Tensor:
    """[first half, second half] → [second half, first half] of the last axis."""
    halves = x.view(*x.shape[:-1], 2, x.shape[-1] // 2)
    return halves.index_select(-2, torch.tensor([1, 0], device=x.device)).view(x.shape)
