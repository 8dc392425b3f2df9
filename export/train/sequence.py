"""All scales in one forward pass: the sequence, its rotary tables, its block-causal mask.

The same logits as the scale loop of `reference/hart.py` gives for the same inputs. Rotary angles stay float32 under
autocast: a bfloat16 angle of 40 is off by an eighth of a radian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ..reference.embeddings import image_angles, text_angles
from ..reference.transformer import Block, HartTransformer, LayerCache

Tables = tuple[Tensor, Tensor, Tensor, Tensor]  # cos a, sin a, cos b, sin b; each [R, 1, L, D/2] float32
RunBlock = Callable[[Block, Tensor, Tables, Tensor], Tensor]


@dataclass
class Predictions:
    """Of every token that predicts a code: scale 0's one, then p² of each scale, the last scale's kept ones only."""

    logits: Tensor  # [R, N, V] float32
    hidden: Tensor  # [R, N, C]
    lengths: list[int]  # tokens of each scale, summing to N

    def by_scale(self) -> list[Tensor]:
        return list(self.logits.split(self.lengths, dim=1))


def run_block(block: Block, x: Tensor, tables: Tables, mask: Tensor) -> Tensor:
    """One block on x [R, L, C] with ready rotary tables."""
    cos_a, sin_a, cos_b, sin_b = tables

    def rotate(q: Tensor) -> Tensor:
        x1, x2 = q.float().chunk(2, dim=-1)
        return torch.cat([x1 * cos_a - x2 * sin_a, x2 * cos_b + x1 * sin_b], dim=-1).to(q.dtype)

    return block(x, rotate, LayerCache(), mask)


def forward(
    model: HartTransformer,
    context: Tensor,
    positions: Tensor,
    inputs: Sequence[Tensor],
    keep: Tensor | None = None,
    block: RunBlock = run_block,
) -> Predictions:
    """Teacher forcing.

    Args:
        context: hidden states of the text [R, T, Ct]; zero rows are unconditional.
        positions: their position ids [R, T].
        inputs: pooled f_hat [R, Z, p, p] of every scale after the first.
        keep: places of the last scale's tokens that take part [R, K]; None for all.
    """
    e = model.embed_context(context).float()  # [R, T, C]; the residual stream is float32
    tokens = [flat(pooled) for pooled in inputs]
    if keep is not None:
        tokens[-1] = take(tokens[-1], keep)
    parts = [e, *(model.word_embed(rows).float() for rows in tokens)]
    levels = model.lvl_embed(torch.arange(len(parts), device=e.device))  # [S, C]
    x = torch.cat([part + level for part, level in zip(parts, levels, strict=True)], dim=1)
    lengths = [part.shape[1] for part in parts]
    tables, mask = rotary_tables(model, positions, keep), block_causal(lengths, x.device)
    for layer in model.blocks:
        x = block(layer, x, tables, mask)
    hidden = x[:, lengths[0] - 1 :]
    logits = model.logits(hidden, *model.head_nm.modulation(e))
    return Predictions(logits, hidden, [1, *lengths[1:]])


def flat(grid: Tensor) -> Tensor:
    """[R, Z, p, p] → [R, p², Z]."""
    return grid.flatten(2).transpose(1, 2)


def take(rows: Tensor, keep: Tensor) -> Tensor:
    """rows [R, L, ...], keep [R, K] → [R, K, ...]."""
    index = keep.view(*keep.shape, *[1] * (rows.dim() - 2)).expand(*keep.shape, *rows.shape[2:])
    return rows.gather(1, index)


def block_causal(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[L, L] bool: a token attends to its own scale and to all before it."""
    scale = torch.cat([torch.full((length,), scale, device=device) for scale, length in enumerate(lengths)])
    return scale[:, None] >= scale[None, :]


def rotary_tables(model: HartTransformer, positions: Tensor, keep: Tensor | None) -> Tables:
    """cos and sin of both angle tables of the whole sequence."""
    patch_nums, head_dim = model.config.patch_nums, model.config.head_dim
    angles = [text_angles(positions, head_dim)]
    angles += [image_angles(side, patch_nums[-1], positions[:, -1], head_dim) for side in patch_nums[1:]]
    if keep is not None:
        angles[-1] = (take(angles[-1][0], keep), take(angles[-1][1], keep))
    first, second = (torch.cat(tables, dim=1)[:, None] for tables in zip(*angles, strict=True))
    return first.cos(), first.sin(), second.cos(), second.sin()


def kept_count(patch_nums: Sequence[int], context: int, mean: float, draw: float) -> int:
    """How many of the last scale's tokens to keep: draw 0…1 through a normal around `mean`, cut at two deviations.

    HART (arXiv 2410.10812) discards 80 % on average. Rounded to eighths, so that compiled kernels are few, and up to
    a sequence of a multiple of 8, which masked attention kernels want.
    """
    tokens, before = patch_nums[-1] ** 2, context + sum(side**2 for side in patch_nums[1:-1])
    edge = NormalDist().cdf(-2.0)
    share = NormalDist(mean, 0.5 * min(mean, 1 - mean) + 1e-6).inv_cdf(edge + draw * (1 - 2 * edge))
    step = max(1, tokens // 8)
    count = max(step, round(share * tokens / step) * step)
    return min(tokens, count + -(before + count) % 8)


def random_places(rows: int, tokens: int, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """`count` different places of 0…tokens−1 for every row, ascending, [R, count]."""
    return torch.rand(rows, tokens, device=device, generator=generator).topk(count, dim=1).indices.sort(dim=1).values
