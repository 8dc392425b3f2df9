"""Rounds a weight so that the errors of its rows cancel in the products that calibration saw.

Row by row, the one that matters most first: what rounding one row does to the results is made up for by changing the rows that
are not rounded yet (GPTQ: Frantar et al., arXiv 2210.17323, after Hassibi & Stork's Optimal Brain Surgeon, 1993). Other than
there, every number stays one of the two neighbours of what it was, so that a stored weight is never off by a step, and
verification can hold it against the checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schemes import Format

DAMPING = 0.01
"""Of the mean of the Gram matrix's diagonal, added to it: rows that no prompt told apart are rounded to the nearest."""


def round_together(weight: Tensor, scale: Tensor, gram: Tensor, form: Format) -> Tensor:
    """Stored numbers for weight [K, N].

    Args:
        weight: float.
        scale: [N] or [].
        gram: [K, K], sum of xᵀx over what the weight multiplies.
        form: to round to.
    """
    order = torch.argsort(-gram.diagonal(), stable=True)
    ordered = gram.double()[order][:, order]
    ordered.diagonal().add_(DAMPING * ordered.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(ordered)), upper=True)
    rest, step = weight.double()[order], scale.double()
    low, high = form.neighbours(rest / step)
    found = torch.empty_like(rest)
    for k in range(len(rest)):
        found[k] = torch.minimum(torch.maximum(form.nearest(rest[k] / step), low[k]), high[k])
        error = (rest[k] - found[k] * step) / inverse[k, k]
        rest[k + 1 :] -= inverse[k, k + 1 :, None] * error
    stored = torch.empty_like(found)
    stored[order] = found
    return stored.to(form.dtype)
