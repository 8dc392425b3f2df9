"""The arithmetic of one run, stage by stage: products, attention and convolutions, a multiply-add counted as two.

With rows n, an n×i by i×o product has 2·n·i·o; attention of n rows over m positions in width c has 4·n·m·c (scores and
mixing); a convolution with a k×k window has 2·cells·k²·i·o. Elementwise work, norms and resizing are not counted: they are
bound by memory, not by arithmetic. Text attention is counted in full, as kernels that take a mask compute it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from transformers import Qwen2Config

from hart_edge.runtime.options import Options

from .reference.config import AutoencoderConfig, TransformerConfig
from .reference.embeddings import FREQUENCY_WIDTH

Flops = dict[str, int]


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the text encoder; `before`: tokens of the system prompt in front of every prompt."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    before: int = 0

    @classmethod
    def of(cls, config: Qwen2Config, before: int = 0) -> TextSizes:
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            config.num_hidden_layers, config.hidden_size, heads, config.num_key_value_heads, head_dim, config.intermediate_size, before
        )


@dataclass(frozen=True)
class Work:
    """What is computed.

    Attributes:
        transformer, autoencoder, text: sizes of the model.
        options: settings of the run.
        batch: pictures.
        repeated: count what the reference computes and no engine has to: the unconditional rows of the context tokens and
            the level embeddings (constants of a checkpoint), keys and values of the system prompt (likewise), logits of
            context tokens that are not sampled, and in the diffusion what does not differ between steps, rows or halves.
    """

    transformer: TransformerConfig
    autoencoder: AutoencoderConfig
    text: TextSizes
    options: Options
    batch: int
    repeated: bool = False

    @property
    def context_rows(self) -> int:
        """Rows of scale 0."""
        return 2 * self.batch if self.repeated else self.batch

    @property
    def level(self) -> int:
        """One level embedding."""
        return _embedder(1, self.transformer.embed_dim) if self.repeated else 0


def stage_flops(work: Work) -> Flops:
    """Operations of every stage of a run, named as `hart-edge bench` names them."""
    flops = {
        "text_encoder": _text(work),
        "context": _context(work),
        "transformer": _transformer(work),
        "sampling": _sampling(work),
        "transition": _transition(work),
        "residual": _residual(work),
        "decoder": work.batch * _decoder(work.autoencoder),
    }
    return {stage: count for stage, count in flops.items() if count or stage != "residual"}


def _linear(rows: int, inner: int, outer: int) -> int:
    return 2 * rows * inner * outer


def _conv(side: int, inner: int, outer: int, window: int = 3) -> int:
    return _linear(side * side, window * window * inner, outer)


def _embedder(rows: int, width: int) -> int:
    return _linear(rows, FREQUENCY_WIDTH, width) + _linear(rows, width, width)


def _text(work: Work) -> int:
    text, tokens = work.text, work.transformer.context_token
    total = tokens + text.before
    new = total if work.repeated else tokens
    mixed, keys = text.heads * text.head_dim, 2 * text.kv_heads * text.head_dim
    products = _linear(new, text.width, mixed + keys) + _linear(new, mixed, text.width) + 3 * _linear(new, text.width, text.hidden)
    return work.batch * text.layers * (products + 4 * new * total * mixed)


def _context(work: Work) -> int:
    t, rows = work.transformer, work.context_rows
    return _linear(rows * t.context_token, t.context_dim, t.embed_dim) + _linear(rows, t.embed_dim, 2 * t.embed_dim) + work.level


def _transformer(work: Work) -> int:
    t = work.transformer
    lengths = [t.context_token, *(p * p for p in t.patch_nums[1:])]
    cached = list(itertools.accumulate(lengths))
    scored = [t.context_token if work.repeated else 1, *lengths[1:]]
    rows = [work.context_rows, *[2 * work.batch] * (len(lengths) - 1)]
    return sum(
        r * (t.depth * _block(t, length, total) + _linear(logits, t.embed_dim, work.autoencoder.vocab_size))
        for r, length, total, logits in zip(rows, lengths, cached, scored, strict=True)
    )


def _block(t: TransformerConfig, length: int, total: int) -> int:
    products = _linear(length, t.embed_dim, 4 * t.embed_dim) + 3 * _linear(length, t.embed_dim, t.mlp_hidden)
    return products + 4 * length * total * t.embed_dim


def _sampling(work: Work) -> int:
    """Mixing of codes; without smooth sampling a code is looked up."""
    cells, a = sum(p * p for p in work.transformer.patch_nums), work.autoencoder
    return _linear(work.batch * cells, a.vocab_size, a.z_channels) if work.options.smooth else 0


def _transition(work: Work) -> int:
    a, scales = work.autoencoder, work.transformer.patch_nums
    phi = (len(scales) - 1) * _conv(scales[-1], a.z_channels, a.z_channels)
    words = _linear(sum(p * p for p in scales[1:]), a.z_channels, work.transformer.embed_dim)
    return work.batch * (phi + words) + (len(scales) - 1) * work.level


def _residual(work: Work) -> int:
    if not work.options.residual:
        return 0
    t, z, width = work.transformer, work.autoencoder.z_channels, work.transformer.diff_width
    cells = work.batch * t.patch_nums[-1] ** 2
    rows, steps = 2 * cells, work.options.diffusion_steps or t.num_sampling_steps
    condition = _linear(rows, t.embed_dim, width)
    once = _linear(cells, z, t.embed_dim) + (0 if work.repeated else condition)
    block = _linear(rows, width, 3 * width) + 2 * _linear(rows, width, width)
    final = _linear(rows, width, 2 * width) + _linear(rows, width, 2 * z)
    shared = (
        _embedder(rows, width) + condition + _linear(rows, z, width) if work.repeated else _embedder(1, width) + _linear(cells, z, width)
    )
    return once + steps * (shared + t.diff_depth * block + final)


def _decoder(a: AutoencoderConfig) -> int:
    """One picture."""
    widths = [a.ch * m for m in a.ch_mult]
    side, channels = a.patch_nums[-1], widths[-1]
    count = _conv(side, a.z_channels, a.z_channels) + _conv(side, a.z_channels, channels)
    count += 2 * _resnet(side, channels, channels) + _attention(side, channels)
    for level in reversed(range(len(widths))):
        for _ in range(3):
            count += _resnet(side, channels, widths[level])
            channels = widths[level]
            count += _attention(side, channels) if level == len(widths) - 1 else 0
        if level:
            side *= 2
            count += _conv(side, channels, channels)
    return count + _conv(side, channels, 3)


def _resnet(side: int, inner: int, outer: int) -> int:
    return _conv(side, inner, outer) + _conv(side, outer, outer) + (_conv(side, inner, outer, window=1) if inner != outer else 0)


def _attention(side: int, channels: int) -> int:
    cells = side * side
    return _linear(cells, channels, 4 * channels) + 4 * cells * cells * channels
