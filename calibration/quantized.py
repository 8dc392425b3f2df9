"""The numbers of one quantised product: its rounded weight and its scales. Knows nothing of graphs or files.

weight  [..] · scale[output channel]     real = stored · scale
input   rounded to stored = round(x / input_scale)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hart_edge.export.stored import INPUT_SCALE, OUTPUT_SCALE, SCALE, along_outputs

from .products import Product
from .rounding import round_together
from .schemes import HALF, Format, Treatment, exact_scale


@dataclass(frozen=True)
class Ranges:
    """What calibration knows of the tensors around a product, as far as its treatment asks for it.

    Attributes:
        source, output: largest magnitude of the input, and of a convolution's output.
        gram: of `Peaks`, after the migration.
    """

    source: float | None = None
    output: float | None = None
    gram: Tensor | None = None


@dataclass(frozen=True)
class Quantized:
    """One product as it is stored.

    Attributes:
        weight: in the format's dtype, shape and layout as before.
        scale: float32, [N] by output channel for INT8, [] for FP8; None for float16.
        input_scale, output_scale: float32 [], of a product whose activations are rounded; the output's for convolutions only.
    """

    weight: Tensor
    scale: Tensor | None = None
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """By name in the weights file, where the weight is called `name`."""
        extra = {SCALE: self.scale, INPUT_SCALE: self.input_scale, OUTPUT_SCALE: self.output_scale}
        return {name: self.weight} | {f"{name}.{key}": value for key, value in extra.items() if value is not None}


def weight_scale(weight: Tensor, axis: int, form: Format) -> Tensor:
    """The largest magnitude of an output channel, or of all, becomes the largest stored number. `axis`: output channels.

    A channel of zeros gets the smallest scale there is and stays zero.
    """
    summed = [other for other in range(weight.dim()) if other != axis or not form.per_channel]
    return exact_scale(weight.float().abs().amax(dim=summed) / form.largest)


def quantize(product: Product, weight: Tensor, treatment: Treatment, ranges: Ranges) -> Quantized:
    """Quantise one product."""
    form = treatment.weight
    if form is HALF:
        return Quantized(weight.to(form.dtype))
    scale = weight_scale(weight, product.axis, form)
    if ranges.gram is None:
        stored = form.quantize(weight, along_outputs(scale, weight.shape))
    else:
        stored = round_together(weight, scale, ranges.gram, form)
    return Quantized(stored, scale, _scale(ranges.source, form), _scale(ranges.output, form))


def _scale(largest: float | None, form: Format) -> Tensor | None:
    return None if largest is None else exact_scale(torch.tensor(largest / form.largest))
