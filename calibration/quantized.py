"""The numbers of one quantised product: its rounded weight and its scales. Knows nothing of graphs or files.

weight  [..] · scale[output channel]     real = stored · scale
input   rounded to stored = round(x / input_scale)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        extra = {"scale": self.scale, "input_scale": self.input_scale, "output_scale": self.output_scale}
        return {name: self.weight} | {f"{name}.{key}": value for key, value in extra.items() if value is not None}

    def real(self, product: Product) -> Tensor:
        """The weight that the stored one stands for, float32."""
        return self.weight.float() * along(self.scale, product)


def quantize_weight(weight: Tensor, product: Product, form: Format) -> tuple[Tensor, Tensor]:
    """The rounded weight and its scale: the largest magnitude of an output channel, or of all, becomes the largest stored number.

    A channel of zeros gets the smallest scale there is and stays zero.
    """
    values = weight.float().abs()
    if form.per_channel:
        other = [axis for axis in range(values.dim()) if axis != product.axis]
        values = values.amax(dim=other)
    else:
        values = values.max()
    scale = exact_scale(values / form.largest)
    return form.quantize(weight, along(scale, product)), scale


def along(scale: Tensor, product: Product) -> Tensor:
    """A scale shaped to multiply the product's weight."""
    if scale.dim() == 0:
        return scale
    shape = [1] * len(product.shape)
    shape[product.axis] = -1
    return scale.view(shape)


def quantize(
    product: Product, weight: Tensor, treatment: Treatment, input_range: float | None = None, output_range: float | None = None
) -> Quantized:
    """Quantise one product; ranges as of `RANGES`, needed where the treatment rounds activations."""
    form = treatment.weight
    if form is None:
        raise ValueError(f"{product.name} stays as it is: {treatment.name}")
    stored, scale = quantize_weight(weight, product, form)
    if not treatment.activations:
        return Quantized(stored, scale)
    if input_range is None:
        raise ValueError(f"{product.name} needs the range of its input")
    return Quantized(stored, scale, _scale(input_range, form), None if output_range is None else _scale(output_range, form))


def _scale(largest: float, form: Format) -> Tensor:
    return exact_scale(torch.tensor(largest / form.largest))
