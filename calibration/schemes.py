"""What can be quantised, and how: number formats, treatments of a product, and the schemes that choose among them.

A product is a matrix product or a convolution with a stored weight. Its treatment says in which format the weight lies in the
file, and whether its input is rounded to the same format, so that the product itself can be computed in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hart_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Format:
    """A number format. Symmetric: real = stored · scale, zero is zero.

    Attributes:
        name: as ONNX calls it.
        dtype: of the stored tensor.
        largest: largest magnitude that is used: of int8 127, so that both signs reach equally far.
        per_channel: one scale per output channel of a weight; FP8 has an exponent of its own and takes one per tensor.
    """

    name: str
    dtype: torch.dtype
    largest: float
    per_channel: bool

    def quantize(self, values: Tensor, scale: Tensor) -> Tensor:
        """Round values / scale to the nearest stored number, ties to even; beyond the largest one, the largest."""
        scaled = (values.float() / scale).clamp(-self.largest, self.largest)
        return scaled.round().to(self.dtype) if self.dtype == torch.int8 else scaled.to(self.dtype)


INT8 = Format("INT8", torch.int8, 127.0, per_channel=True)
FP8 = Format("FLOAT8E4M3FN", torch.float8_e4m3fn, 448.0, per_channel=False)


@dataclass(frozen=True)
class Treatment:
    """What is done to a product.

    Attributes:
        name: as manifests and reports say it.
        weight: format of the weight; None leaves it as it is.
        activations: the input is rounded to the same format, with one scale for the whole tensor.
    """

    name: str
    weight: Format | None
    activations: bool


FLOAT = Treatment("float", None, activations=False)
WEIGHT_ONLY = Treatment("weight-only", INT8, activations=False)
W8A8 = Treatment("w8a8", INT8, activations=True)
FP8_BOTH = Treatment("fp8", FP8, activations=True)

TREATMENTS = {treatment.name: treatment for treatment in (FLOAT, WEIGHT_ONLY, W8A8, FP8_BOTH)}


@dataclass(frozen=True)
class Scheme:
    """How a bundle is quantised.

    Attributes:
        name: as the command line says it; precision: as the manifest does.
        engines: what is done to the products of an engine; engines that are not named keep their floats.
        fallback: of groups of products that would cost too much.
        migrate: move the spread of activations into weights first (migrate.py).
    """

    name: str
    precision: str
    engines: Mapping[str, Treatment]
    fallback: Treatment
    migrate: bool

    @property
    def rounds_activations(self) -> bool:
        return any(treatment.activations for treatment in self.engines.values())


_TEXT, _BLOCKS, _DIFFUSION = "text_encoder", "transformer", "residual_step"
_PRODUCTS = (_TEXT, "context", _BLOCKS, "residual_condition", _DIFFUSION)

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("weight-only", "int8-weight-only", dict.fromkeys((*_PRODUCTS, "decoder"), WEIGHT_ONLY), FLOAT, migrate=False),
        Scheme("w8a8", "int8-w8a8", {**dict.fromkeys(_PRODUCTS, W8A8), "decoder": WEIGHT_ONLY}, WEIGHT_ONLY, migrate=True),
        Scheme("w8a8-decoder", "int8-w8a8", dict.fromkeys((*_PRODUCTS, "decoder"), W8A8), WEIGHT_ONLY, migrate=True),
        Scheme("fp8", "fp8", dict.fromkeys((_TEXT, _BLOCKS, _DIFFUSION), FP8_BOTH), FLOAT, migrate=False),
    )
}
"""`transition` takes part in none: it adds up the latent over all scales in float32, and is tiny. Attention, its products of
activations, stays float in all. The decoder in integers is faster on a CPU only where its two largest levels take part, and those
cost most of its quality (docs/measurements.md); `w8a8-decoder` is for trying that.
"""


def scheme_of(name: str) -> Scheme:
    """The scheme of that name; InputError lists the ones there are."""
    if name not in SCHEMES:
        raise InputError(f"scheme {name!r} is unknown; expected one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def exact_scale(scale: Tensor) -> Tensor:
    """The next float16 value at or above, as float32: a graph that computes in float16 then has exactly this scale.

    At least 2⁻²⁴, the smallest there is. Rounding up keeps the largest value inside the range.
    """
    half = scale.float().clamp_min(2.0**-24).half()
    above = (half.view(torch.int16) + 1).view(torch.float16)
    return torch.where(half.float() < scale, above, half).float()
