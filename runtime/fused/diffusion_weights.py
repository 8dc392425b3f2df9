"""Weights of the residual diffusion on the device, and what can be computed from them at load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hart_edge.plugins.kernel import Buffer

from ..engine import Array
from .fp8 import Weight, load_weight
from .weights import Weights

CONDITION, STEP = "residual_condition.", "residual_step."
Affine = tuple[Weight, Buffer]
"""Weight and bias of a product."""


@dataclass(frozen=True)
class DiffusionLayer:
    """One block of the MLP: (weight, bias) of its norm [W], of its modulation [W, 3W] and of its two products [W, W]."""

    norm: tuple[Buffer, Buffer]
    modulation: Affine
    first: Affine
    second: Affine


@dataclass(frozen=True)
class DiffusionWeights:
    """Everything that does not depend on the picture.

    Attributes:
        words: [V, C] the embedding of every code, so that embedding a token is taking a row.
        norm: [C] of the condition; condition: C → W.
        input: Z → W; final_modulation: W → 2W; final: W → 2Z.
        time: the embedding of timesteps, on the host.
    """

    words: Buffer
    norm: Buffer
    condition: Affine
    input: Affine
    layers: tuple[DiffusionLayer, ...]
    final_modulation: Affine
    final: Affine
    time: TimeEmbedding

    @classmethod
    def load(cls, weights: Weights) -> DiffusionWeights:
        count = 0
        while f"{STEP}layers.{count}.first.weight" in weights:
            count += 1
        modulations = [f"{STEP}layers.{i}.modulation.weight" for i in range(count)] + [f"{STEP}final_modulation.weight"]
        return cls(
            words=_words(weights),
            norm=weights[f"{CONDITION}norm.weight"],
            condition=_affine(weights, f"{CONDITION}condition."),
            input=(weights[f"{STEP}input.weight"], weights[f"{STEP}input.bias"]),
            layers=tuple(_layer(weights, f"{STEP}layers.{i}.", modulations) for i in range(count)),
            final_modulation=_affine(weights, f"{STEP}final_modulation.", modulations),
            final=_affine(weights, f"{STEP}final."),
            time=TimeEmbedding.load(weights),
        )

    @property
    def width(self) -> int:
        """W."""
        return self.condition[0].shape[1]

    @property
    def channels(self) -> int:
        """Z."""
        return self.input[0].shape[0]


@dataclass(frozen=True)
class TimeEmbedding:
    """Linear, SiLU, Linear over sines and cosines of the timestep; (weight, bias) of both, on the host."""

    first: tuple[Array, Array]
    second: tuple[Array, Array]

    @classmethod
    def load(cls, weights: Weights) -> TimeEmbedding:
        first, second = (
            (weights.host(f"{STEP}{part}.weight"), weights.host(f"{STEP}{part}.bias")) for part in ("time_first", "time_second")
        )
        return cls(first, second)

    def rows(self, timesteps: Sequence[float]) -> Array:
        """[n, W] in the weights' type; computed in float32, rounded once behind the sines and once at the end."""
        dtype, width = self.first[0].dtype, self.first[0].shape[0]
        frequency = np.exp(np.float32(-math.log(10000)) * np.arange(width // 2, dtype=np.float32) / np.float32(width // 2))
        angle = np.asarray(timesteps, np.float32)[:, None] * frequency
        sines = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1).astype(dtype).astype(np.float32)
        hidden = _product(sines, self.first)
        return _product(hidden / (1 + np.exp(-hidden)), self.second).astype(dtype)


def _words(weights: Weights) -> Buffer:
    """The embedding of every code, [V, C]."""
    codebook = weights.host(f"{CONDITION}codebook")
    embed = weights.host(f"{CONDITION}embed.weight"), weights.host(f"{CONDITION}embed.bias")
    shape = codebook.shape[0], embed[0].shape[1]
    return weights.put_made(
        "fused.diffusion.words", shape, codebook.dtype, lambda: _product(codebook.astype(np.float32), embed).astype(codebook.dtype)
    )


def _product(x: Array, affine: tuple[Array, Array]) -> Array:
    """x float32 @ weight + bias."""
    result: Array = x @ affine[0].astype(np.float32) + affine[1].astype(np.float32)
    return result


def _layer(weights: Weights, name: str, modulations: Sequence[str]) -> DiffusionLayer:
    return DiffusionLayer(
        norm=(weights[f"{name}norm_weight"], weights[f"{name}norm_bias"]),
        modulation=_affine(weights, f"{name}modulation.", modulations),
        first=_affine(weights, f"{name}first."),
        second=_affine(weights, f"{name}second."),
    )


def _affine(weights: Weights, name: str, beside: Sequence[str] = ()) -> Affine:
    return load_weight(weights, f"{name}weight", beside=beside), weights[f"{name}bias"]
