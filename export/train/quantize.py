"""Multi-scale residual quantisation in training: straight-through, corrupted, and the care of the codebook.

Always float32. The last scale's codes are taken without φ, as `HybridQuantizer.encode` does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hart_edge.runtime.resample import bicubic_matrix

from ..reference.diffusion import RESIDUAL_GAIN
from ..reference.quantizer import HybridQuantizer

NEAR_CODES = 16  # a corrupted code is one of this many nearest ones, half of the time


@dataclass
class Quantised:
    """f_hat [B, Z, G, G] with the straight-through gradient; the vq loss; codes and cells of every scale."""

    f_hat: Tensor
    loss: Tensor
    rest: Tensor  # [B, Z, G, G] latent minus f_hat, with the latent's gradient: what the diffusion has to supply
    indices: list[Tensor]  # per scale [B·p²]
    cells: list[Tensor]  # per scale [B·p², Z]: what the codes stand for


def quantise(quantizer: HybridQuantizer, f: Tensor, beta: float) -> Quantised:
    """f [B, Z, G, G] float32 → codes of all scales.

    loss = mean over scales of `‖f_hat − sg(f)‖² + β·‖sg(f_hat) − f‖²`, f_hat the running sum (VAR, arXiv 2404.02905).
    """
    fixed = f.detach()
    f_hat, loss = torch.zeros_like(fixed), f.new_zeros(())
    indices, cells = [], []
    for scale in range(len(quantizer.patch_nums)):
        rows = _cells(quantizer, fixed - f_hat.detach(), scale)
        index = _nearest(quantizer, rows)
        f_hat = f_hat + _contribution(quantizer, index.view(f.shape[0], -1), scale)
        loss = loss + F.mse_loss(f_hat, fixed) + beta * F.mse_loss(f, f_hat.detach())
        indices.append(index)
        cells.append(rows)
    through = f + (f_hat - f).detach()
    return Quantised(through, loss / len(indices), f - f_hat.detach(), indices, cells)


@dataclass
class Codes:
    """What the transformer learns from: targets and inputs of every scale, and the rest before the last scale."""

    targets: list[Tensor]  # per scale [B, p²]
    inputs: list[Tensor]  # per scale after the first [B, Z, p, p], pooled f_hat
    residual: Tensor  # [B, G², Z]


@torch.no_grad()
def encode(quantizer: HybridQuantizer, f: Tensor, rate: float = 0.0, generator: torch.Generator | None = None) -> Codes:
    """f [B, Z, G, G] → codes, with a share of the input codes replaced.

    With rate 0 this is `HybridQuantizer.encode` and `inputs_of`. Otherwise every picture gets its own share, uniform
    in 0…2·rate, of wrong codes in the inputs; the targets of later scales are encoded from what those inputs leave
    over, so that the transformer learns to correct itself (as Infinity, arXiv 2412.04431, does with bits).
    """
    rest, f_hat = f, torch.zeros_like(f)
    targets, inputs = [], []
    share = 2 * rate * torch.rand(f.shape[0], 1, device=f.device, generator=generator)
    near = _neighbours(quantizer.embedding.weight)
    last = len(quantizer.patch_nums) - 1
    for scale in range(last):
        index = _nearest(quantizer, _cells(quantizer, rest, scale)).view(f.shape[0], -1)
        targets.append(index)
        seen = _corrupt(near, index, share, generator) if rate else index
        h = _contribution(quantizer, seen, scale)
        f_hat, rest = f_hat + h, rest - h
        inputs.append(quantizer.pool(f_hat, scale + 1))
    residual = rest.flatten(2).transpose(1, 2)
    targets.append(_nearest(quantizer, residual.flatten(0, 1)).view(f.shape[0], -1))
    return Codes(targets, inputs, residual)


def _cells(quantizer: HybridQuantizer, rest: Tensor, scale: int) -> Tensor:
    """rest [B, Z, G, G] → pooled cells [B·p², Z]."""
    pooled = rest if scale == len(quantizer.patch_nums) - 1 else quantizer.pool(rest, scale)
    return pooled.permute(0, 2, 3, 1).reshape(-1, rest.shape[1])


@torch.no_grad()
def _nearest(quantizer: HybridQuantizer, rows: Tensor) -> Tensor:
    return quantizer.nearest(rows)


def _contribution(quantizer: HybridQuantizer, index: Tensor, scale: int) -> Tensor:
    """index [B, p²] → what it adds to f_hat, [B, Z, G, G]."""
    h = quantizer.lookup(index, quantizer.patch_nums[scale])
    return h if scale == len(quantizer.patch_nums) - 1 else _upsample(quantizer, h, scale)


def _upsample(quantizer: HybridQuantizer, h: Tensor, scale: int) -> Tensor:
    """`HybridQuantizer.upsample` as one product: torch's bicubic kernel takes more than half of a training step."""
    up = h.flatten(2) @ _bicubic(quantizer.patch_nums[scale], quantizer.grid, h.device)
    return quantizer.quant_resi(up.unflatten(2, (quantizer.grid, quantizer.grid)), scale, len(quantizer.patch_nums))


@functools.cache
def _bicubic(source: int, target: int, device: torch.device) -> Tensor:
    """Interpolation along both axes, [source², target²]."""
    along = torch.from_numpy(bicubic_matrix(source, target)).to(device)
    return torch.kron(along, along).T.contiguous()


@torch.no_grad()
def _neighbours(codes: Tensor) -> Tensor:
    """codes [V, Z] → for every code the NEAR_CODES nearest ones [V, K], itself among them."""
    distance = codes.square().sum(1) - 2 * codes @ codes.T
    return distance.topk(min(NEAR_CODES, len(codes)), largest=False).indices


def _corrupt(near: Tensor, index: Tensor, share: Tensor, generator: torch.Generator | None) -> Tensor:
    """Replace a share [B, 1] of index [B, p²]: half by any code, half by one of the nearest, near [V, K]."""
    draw = {"device": index.device, "generator": generator}
    plausible = near[index, torch.randint(near.shape[1], index.shape, **draw)]
    anything = torch.randint(len(near), index.shape, **draw)
    wrong = torch.where(torch.rand(index.shape, **draw) < 0.5, plausible, anything)
    return torch.where(torch.rand(index.shape, **draw) < share, wrong, index)


class CodebookCare:
    """Moving usage of every code; codes that nothing uses are put where the data is."""

    def __init__(self, vocab: int, device: torch.device, decay: float = 0.98, threshold: float = 0.02) -> None:
        self.usage = torch.ones(vocab, device=device)
        self.decay, self.threshold = decay, threshold

    @torch.no_grad()
    def observe(self, indices: list[Tensor]) -> None:
        """Usage in units of the even share 1/V of a batch."""
        used = torch.cat(indices)
        counts = torch.zeros_like(self.usage).index_add_(0, used, torch.ones_like(used, dtype=torch.float32))
        self.usage.lerp_(counts * len(self.usage) / counts.sum(), 1 - self.decay)

    @torch.no_grad()
    def restart(self, weight: Tensor, cells: list[Tensor], generator: torch.Generator, threshold: float | None = None) -> Tensor:
        """Move dead rows of weight [V, Z] onto cells, every scale supplying as many; returns which rows, [V] bool."""
        dead = self.usage < (self.threshold if threshold is None else threshold)
        scale = torch.randint(len(cells), (len(weight),), device=weight.device, generator=generator)
        draw = torch.rand(len(weight), device=weight.device, generator=generator)
        sizes = torch.tensor([len(rows) for rows in cells], device=weight.device)
        starts = sizes.cumsum(0) - sizes
        place = starts[scale] + (draw * sizes[scale]).long().clamp_max(sizes[scale] - 1)
        weight.copy_(torch.where(dead[:, None], torch.cat(cells)[place], weight))
        self.usage.masked_fill_(dead, 1.0)
        return dead


def gain_of(rest: Tensor, share: float = 0.997) -> float:
    """Factor on the latent scale that puts `share` of |rest|/0.6, the diffusion's targets, inside −1…1."""
    magnitude = rest.abs().flatten().float().cpu().sort().values
    return RESIDUAL_GAIN / float(magnitude[int(share * (len(magnitude) - 1))].clamp_min(1e-8))
