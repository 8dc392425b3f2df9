"""Moves the spread of activation channels into the weights that read them, so that one scale fits a whole activation.

After SmoothQuant (Xiao et al., arXiv 2211.10438): channel j of an activation is divided by s_j and row j of every weight that
reads it multiplied, s_j = max|x_j|^α / max|w_j|^(1−α). Here s_j is the nearest power of two, so that nothing rounds, and α is
chosen for every site among STRENGTHS, 0 (no migration) among them: the one with the least error of the products' results on
sampled rows.

The division happens where a multiplication stands already: in the weight of an RMSNorm, and in the columns of a product whose
result is only multiplied with the other half of a gated MLP. The two norms of a HART block share one weight, so one s serves
what reads either of them. Elsewhere the graph gets a multiplication by 1/s, where that pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hart_edge.export.stored import COLUMNS, ROWS, move

from .collect import Key
from .quantized import weight_scale
from .ranges import RANGES
from .schemes import INT8, exact_scale
from .sites import Site
from .statistics import Histogram, Peaks

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAYS = 0.5
"""A multiplication of its own has to bring the error below this share of what it was."""
MOST = 12
"""Largest magnitude of an exponent."""

Weight = Callable[[str], Tensor]
"""A tensor of the weights file by name."""


@dataclass(frozen=True)
class Migration:
    """log₂ s of every channel, int8 [K], by site; sites that stay as they are, are left out."""

    exponents: Mapping[Site, Tensor]

    @property
    def divisors(self) -> dict[Key, Tensor]:
        """By activation, what its channels are divided by, float64 [K]."""
        return {tensor: torch.exp2(e.double()) for site, e in self.exponents.items() for tensor in site.tensors}

    def factors(self, sites: Iterable[Site]) -> dict[str, Tensor]:
        """What the migration of these sites does to weights, as exponents that are kept beside them (export/stored.py)."""
        found: dict[str, Tensor] = {}
        for site in sites:
            if not site.explicit:
                found[f"{site.divided}.{COLUMNS}"] = -self.exponents[site]
            found |= {f"{name}.{ROWS}": self.exponents[site] for name in site.multiplied}
        return found


def choose(sites: Sequence[Site], peaks: Mapping[Key, Peaks], weight: Weight, range_: str) -> Migration:
    """The migration of every site with the α that serves it best."""
    found = {}
    for site in sites:
        options = [_exponents(site, peaks, weight, strength) for strength in STRENGTHS]
        errors = [_error(site, peaks, weight, range_, option) for option in options]
        best = options[errors.index(min(errors))]
        if best.any() and (not site.explicit or min(errors) < PAYS * errors[0]):  # the first is that of no migration
            found[site] = best
    return Migration(found)


def _exponents(site: Site, peaks: Mapping[Key, Peaks], weight: Weight, strength: float) -> Tensor:
    """log₂ s; 0 for a channel of zeros and where a weight's type could not hold the result."""
    activation = torch.stack([peaks[key].largest for key in site.tensors]).amax(dim=0)
    if strength == 0:
        return torch.zeros(len(activation), dtype=torch.int8)
    rows = torch.stack([weight(name).double().abs().amax(dim=1) for name in site.multiplied]).amax(dim=0)
    ratio = strength * activation.clamp_min(1e-30).log2() - (1 - strength) * rows.clamp_min(1e-30).log2()
    result = torch.where((activation > 0) & (rows > 0), (ratio - ratio.median()).round().clamp(-MOST, MOST), 0)
    exact = torch.ones(len(result), dtype=torch.bool) if site.explicit else _exact(weight(site.divided), -result)
    for name in site.multiplied:
        exact &= _exact(weight(name).T, result)
    return torch.where(exact, result, 0).to(torch.int8)


def _error(site: Site, peaks: Mapping[Key, Peaks], weight: Weight, range_: str, exponent: Tensor) -> float:
    """Mean over the products of ‖x·w − x̂·ŵ‖² / ‖x·w‖² on the sampled rows, x̂ and ŵ rounded after the migration."""
    divisor, errors = torch.exp2(exponent.float()), []
    for key, products in site.readers.items():
        x = peaks[key].rows
        moved = x / divisor
        histogram = Histogram(float(moved.abs().max()))
        histogram.add(moved.numpy(), "sample")
        scale = exact_scale(torch.tensor(RANGES[range_](histogram, INT8) / INT8.largest))
        rounded = INT8.quantize(moved, scale).float() * scale
        for name in products:
            w = weight(name).float()
            migrated = w * divisor[:, None]
            scales = weight_scale(migrated, 1, INT8)
            want, have = x @ w, rounded @ (INT8.quantize(migrated, scales).float() * scales)
            errors.append(float(((have - want) ** 2).sum() / (want**2).sum().clamp_min(1e-30)))
    return sum(errors) / len(errors)


def _exact(weight: Tensor, exponent: Tensor) -> Tensor:
    """Channels of the last axis that come back from scaling unchanged."""
    back = move(move(weight, None, exponent), None, -exponent) == weight
    return back if back.dim() == 1 else back.all(dim=0)
