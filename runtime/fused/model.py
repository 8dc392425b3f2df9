"""One bundle on one GPU: its weights, laid out as the fused engine computes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hart_edge.plugins import Buffer, next_scale, rope_cache

from ..bundle import Bundle
from ..errors import EngineError
from ..spec import CODEBOOK, ModelSpec
from .attention import Attentions
from .blocks import TransformerWeights, Unconditional
from .buffers import entry
from .conditioning import ContextWeights
from .context import FusedContext
from .conv import Convolutions
from .decoder import load_decoder
from .diffusion_weights import DiffusionWeights
from .facts import GraphFacts
from .fp8 import check_capability
from .parts import Part, PartPlan
from .text import TextWeights
from .upload import Uploader
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


@dataclass(frozen=True)
class GeneratorWeights:
    """Everything between text encoder and decoder.

    Attributes:
        frequencies: rotary frequencies of the context tokens and of image tokens.
    """

    transformer: TransformerWeights
    conditioning: ContextWeights
    transition: TransitionWeights
    diffusion: DiffusionWeights
    codebook: Buffer
    frequencies: tuple[Buffer, Buffer]
    unconditional: Unconditional

    @classmethod
    def load(cls, weights: Weights, spec: ModelSpec) -> GeneratorWeights:
        text, image = (rope_cache.frequencies(spec.head_dim, image) for image in (False, True))
        return cls(
            transformer=TransformerWeights.load(weights, spec.depth),
            conditioning=ContextWeights.load(weights, spec.width),
            transition=TransitionWeights.load(weights, spec.latent_channels),
            diffusion=DiffusionWeights.load(weights),
            codebook=weights[CODEBOOK],
            frequencies=(weights.put("fused.frequencies.text", text), weights.put("fused.frequencies.image", image)),
            unconditional=Unconditional.load(weights, spec),
        )


class ModelPlan:
    """One bundle before anything is loaded: its sizes, and what its parts take.

    Attributes:
        text: None for a bundle without a text encoder.
        dtype: of the networks' weights and activations, but for what is FP8.
        fp8: names of the weights in FP8.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.spec: ModelSpec = bundle.spec
        has_text = "text_encoder" in bundle.manifest.engines
        self.text = PartPlan("text encoder", bundle, TextWeights.load) if has_text else None
        self.generator = PartPlan("transformer and the diffusion", bundle, partial(GeneratorWeights.load, spec=self.spec))
        self.decoder = PartPlan("decoder", bundle, partial(load_decoder, grid=self.spec.grid))
        self.dtype = self.generator.sizes.transformer.head.dtype
        self.fp8 = self.generator.fp8 | (self.text.fp8 if self.text else set())
        if self.fp8 and self.dtype != "float16":
            raise EngineError(f"{bundle.root} has FP8 weights beside {self.dtype} ones; expected float16.", "Quantise an fp16 bundle.")


class FusedModel:
    """A bundle's weights on the device and what is planned once for all batches. The context must outlive it.

    Args:
        low_vram: load each part when it is needed, to be freed when its phase ends; otherwise everything now, to stay.
        meanwhile: called with the model while everything is copied to the GPU: it may use the weights' addresses, not what they hold.

    Attributes:
        text, generator, decoder: the parts on the device.
        dtype: of the networks' weights and activations.

    Raises GpuMemoryError when the weights do not fit, EngineError for FP8 on a device without it.
    """

    def __init__(
        self, context: FusedContext, bundle: Bundle, low_vram: bool = False, meanwhile: Callable[[FusedModel], None] = lambda model: None
    ) -> None:
        self.context, self.bundle, self.low_vram = context, bundle, low_vram
        self.plan, self.facts = ModelPlan(bundle), GraphFacts.of(bundle)
        self.spec, self.dtype = self.plan.spec, self.plan.dtype
        if self.plan.fp8:
            check_capability(context.device)
        self.text = None if self.plan.text is None else Part(self.plan.text, context)
        self.generator, self.decoder = Part(self.plan.generator, context), Part(self.plan.decoder, context)
        self.attentions, self.convolutions = Attentions(context), Convolutions(context)
        if not low_vram:
            self._load(meanwhile)

    def _load(self, meanwhile: Callable[[FusedModel], None]) -> None:
        parts = [part for part in (self.text, self.generator, self.decoder) if part is not None]
        try:
            with Uploader(self.context.device) as uploader:
                for part in parts:
                    part.begin(uploader)
                meanwhile(self)
        except BaseException:
            self.close()
            raise
        for part in parts:
            part.settle()

    def close(self) -> None:
        """Free the weights. Idempotent."""
        for part in (self.text, self.generator, self.decoder):
            if part is not None:
                part.close()
