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
        """The stored numbers nearest to values / scale."""
        return self.nearest(values.float() / scale).to(self.dtype)

    def nearest(self, scaled: Tensor) -> Tensor:
        """The nearest stored number, ties to even, in the type of `scaled`; beyond the largest one, the largest."""
        inside = scaled.clamp(-self.largest, self.largest)
        return inside.round() if self.dtype == torch.int8 else inside.float().to(self.dtype).to(scaled.dtype)

    def neighbours(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """The stored numbers just below and just above; both the same where a number is one itself."""
        if self.dtype == torch.int8:
            return scaled.floor().clamp_min(-self.largest), scaled.ceil().clamp_max(self.largest)
        near = self.nearest(scaled)
        magnitude = near.abs().float().to(self.dtype).view(torch.uint8)  # codes of magnitudes are in their order
        further = torch.where(near.abs() < scaled.abs(), magnitude + 1, magnitude - (magnitude > 0).byte())
        other = further.clamp_max(_LARGEST_CODE).view(self.dtype).to(scaled.dtype) * torch.where(scaled < 0, -1.0, 1.0)
        other = torch.where(near == scaled, near, other)
        return torch.minimum(near, other), torch.maximum(near, other)


_LARGEST_CODE = 0x7E  # of float8 e4m3fn: 448

INT8 = Format("INT8", torch.int8, 127.0, per_channel=True)
FP8 = Format("FLOAT8E4M3FN", torch.float8_e4m3fn, 448.0, per_channel=False)
HALF = Format("FLOAT16", torch.float16, 65504.0, per_channel=False)
"""Of weights that stay float in an fp32 bundle: half the size, and its rounding is 16 times finer than INT8's."""


@dataclass(frozen=True)
class Treatment:
    """What is done to a product.

    Attributes:
        name: as manifests and reports say it.
        weight: format of the weight.
        activations: the input is rounded to the same format, with one scale for the whole tensor.
    """

    name: str
    weight: Format
    activations: bool


FLOAT = Treatment("float", HALF, activations=False)
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
        fallback: of groups of products that would cost too much; where that still does, they stay float.
        migrate: move the spread of activations into weights first (migrate.py).
    """

    name: str
    precision: str
    engines: Mapping[str, Treatment]
    fallback: Treatment
    migrate: bool

    def steps(self, engine: str) -> tuple[Treatment, ...]:
        """What may be done to a product of the engine, the wanted treatment first, float last."""
        return tuple(dict.fromkeys((self.engines[engine], self.fallback, FLOAT)))


_ONCE, _REPEATED = ("text_encoder", "context", "residual_condition", "decoder"), ("transformer", "residual_step")
_ALL = (*_ONCE, *_REPEATED)

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("weight-only", "int8-weight-only", dict.fromkeys(_ALL, WEIGHT_ONLY), FLOAT, migrate=False),
        Scheme("w8a8", "int8-w8a8", dict.fromkeys(_REPEATED, W8A8) | dict.fromkeys(_ONCE, WEIGHT_ONLY), WEIGHT_ONLY, migrate=True),
        Scheme("w8a8-all", "int8-w8a8", dict.fromkeys(_ALL, W8A8), WEIGHT_ONLY, migrate=True),
        Scheme("fp8", "fp8", dict.fromkeys(_REPEATED, FP8_BOTH), FLOAT, migrate=False),
    )
}
"""What runs for every scale and every step is computed in 8 bits. Text and the diffusion's condition run once a picture, 1 % of its
time, and an error in them is in everything after: only their weights have 8 bits. So has the decoder: its two largest levels would
have to stay float for their quality, and the others in integers make it slower on a CPU (docs/measurements.md). `w8a8-all` is for trying
all of it.

`transition` takes part in none: it adds up the latent over all scales in float32, and is tiny. Attention, its products of
activations, stays float in all.
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
