"""One bundle on one GPU: its weights, laid out as the fused engine computes with them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from hart_edge.plugins import Buffer, next_scale, rope_cache

from ..bundle import Bundle
from ..engine import Array
from ..spec import CODEBOOK, UNCONDITIONAL_K, UNCONDITIONAL_V, ModelSpec
from .attention import Attentions
from .blocks import TransformerWeights
from .buffers import entry
from .conditioning import ContextWeights
from .context import FusedContext
from .conv import Convolutions
from .diffusion_weights import DiffusionWeights
from .facts import GraphFacts
from .text import TextWeights
from .weights import Weights


@dataclass(frozen=True)
class TransitionWeights:
    """phi: (weight [3, 3, Zin, Zout], bias [Z]) of every φ convolution; word: weight [Z, C] and bias; levels [S, C]."""

    phi: tuple[tuple[Buffer, Buffer], ...]
    word: tuple[Buffer, Buffer]
    levels: Buffer

    @classmethod
    def load(cls, weights: Weights, channels: int) -> TransitionWeights:
        weight, bias = weights.host("transition.phi_weight"), weights.host("transition.phi_bias")
        parts = [slice(start, start + channels) for start in range(0, bias.shape[0], channels)]
        phi = tuple(
            (weights.put(f"fused.phi.{i}", next_scale.pack_phi(weight[part])), weights.put(f"fused.phi.{i}.bias", bias[part]))
            for i, part in enumerate(parts)
        )
        return cls(phi, (weights["transition.embed.weight"], weights["transition.embed.bias"]), weights["transition.levels"])

    def level(self, scale: int) -> Buffer:
        """[C]."""
        return entry(self.levels, scale)


class FusedModel:
    """Weights on the device and what is planned once for all batches. Closed explicitly; the context must outlive it.

    Attributes:
        dtype: of the networks' weights and activations.
        frequencies: rotary frequencies of the context tokens and of image tokens.
        unconditional: keys and values of the unconditional context, [depth, H, D] each, on the host.
    """

    def __init__(self, context: FusedContext, bundle: Bundle) -> None:
        self.context, self.bundle = context, bundle
        self.spec: ModelSpec = bundle.spec
        self.facts = GraphFacts.of(bundle)
        with ExitStack() as stack:
            self.weights = stack.enter_context(Weights(bundle, context.device, context.stream))
            self._load()
            self._stack = stack.pop_all()
        self.attentions, self.convolutions = Attentions(context), Convolutions(context)

    def _load(self) -> None:
        weights, spec = self.weights, self.spec
        self.transformer = TransformerWeights.load(weights, spec.depth)
        self.conditioning = ContextWeights.load(weights, spec.width)
        self.transition = TransitionWeights.load(weights, spec.latent_channels)
        self.text = TextWeights.load(weights) if "text_encoder" in self.bundle.manifest.engines else None
        self.diffusion = DiffusionWeights.load(weights)
        self.codebook = weights[CODEBOOK]
        self.dtype = self.transformer.head.dtype
        text, image = (rope_cache.frequencies(spec.head_dim, image) for image in (False, True))
        self.frequencies = (weights.put("fused.frequencies.text", text), weights.put("fused.frequencies.image", image))
        self.unconditional: tuple[Array, Array] = (weights.host(UNCONDITIONAL_K), weights.host(UNCONDITIONAL_V))

    def close(self) -> None:
        """Idempotent."""
        self._stack.close()
