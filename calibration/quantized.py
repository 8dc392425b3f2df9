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
from .schemes import Format, Treatment, exact_scale


@dataclass(frozen=True)
class Quantized:
    """One product as it is stored.

    Attributes:
        weight: in the format's dtype, shape and layout as before.
        scale: float32, [N] by output channel for INT8, [] for FP8.
        input_scale, output_scale: float32 [], of a product whose activations are rounded; the output's for convolutions only.
    """

    weight: Tensor
    scale: Tensor
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """By name in the weights file, where the weight is called `name`."""
        extra = {SCALE: self.scale, INPUT_SCALE: self.input_scale, OUTPUT_SCALE: self.output_scale}
        return {name: self.weight} | {f"{name}.{key}": value for key, value in extra.items() if value is not None}


def quantize_weight(weight: Tensor, axis: int, form: Format) -> tuple[Tensor, Tensor]:
    """The rounded weight and its scale: the largest magnitude of an output channel, or of all, becomes the largest stored number.

    A channel of zeros gets the smallest scale there is and stays zero.

    Args:
        weight: of a product.
        axis: its output channels.
        form: to round to.
    """
    summed = [other for other in range(weight.dim()) if other != axis or not form.per_channel]
    scale = exact_scale(weight.float().abs().amax(dim=summed) / form.largest)
    return form.quantize(weight, along_outputs(scale, weight.shape)), scale


def quantize(
    product: Product, weight: Tensor, treatment: Treatment, input_range: float | None = None, output_range: float | None = None
) -> Quantized:
    """Quantise one product; ranges as of `RANGES`, needed where the treatment rounds activations."""
    form = treatment.weight
    if form is None:
        raise ValueError(f"{product.name} stays as it is: {treatment.name}")
    stored, scale = quantize_weight(weight, product.axis, form)
    if not treatment.activations:
        return Quantized(stored, scale)
    if input_range is None:
        raise ValueError(f"{product.name} needs the range of its input")
    return Quantized(stored, scale, _scale(input_range, form), None if output_range is None else _scale(output_range, form))


def _scale(largest: float, form: Format) -> Tensor:
    return exact_scale(torch.tensor(largest / form.largest))
