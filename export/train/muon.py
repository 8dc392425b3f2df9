"""Muon with all matrices of one shape in one batch of products: some sixty matrices would else start thousands of small kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov's momentum and steps as large as AdamW's, up to rounding; its state is the same.

    Args:
        parameters: matrices.
        lr: learning rate. decay: weight decay.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, decay: float) -> None:
        super().__init__(parameters, lr=lr, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; matrices without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrices in by_shape([p for p in group["params"] if p.grad is not None]):
                self._step(group, matrices)
        return loss

    def _step(self, group: dict[str, Any], matrices: list[Tensor]) -> None:
        gradients = [p.grad for p in matrices if p.grad is not None]
        averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"]))
        update = orthogonalise(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(matrices[0].shape) ** 0.5  # arXiv 2502.16982
        torch._foreach_add_(matrices, list(update.to(matrices[0].dtype).unbind()), alpha=-group["lr"] * size)


def by_shape(matrices: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those of one shape together, in the order of their first."""
    found: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        found[matrix.shape].append(matrix)
    return list(found.values())


def orthogonalise(stack: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices [N, A, B] with all singular values near 1, bfloat16: Newton–Schulz iterations of fifth order (Jordan et al., 2024)."""
    a, b, c = coefficients
    tall = stack.shape[1] > stack.shape[2]
    x = stack.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
