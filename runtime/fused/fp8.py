"""Weights of FP8 products (E4M3, per-tensor scales) as a quantised bundle stores them, and where the products' inputs lie.

    weight = stored · scale        the product's input is round(x / input_scale), saturated

Every product decides for itself: one that runs in float16 or float32 has a plain `Buffer` for a weight, one that runs in FP8 an
`Fp8Weight`. Quantised activations lie at the start of the buffers that float16 ones would lie in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hart_edge.plugins.kernel import FP8, Buffer, minimum_of

from ..cuda import Device
from ..errors import EngineError
from .blas import FP8_MULTIPLE
from .weights import OTHER_BACKEND, STORED_FP8, Weights


@dataclass(frozen=True)
class Part:
    """Columns start … stop − 1 of a product's output, which have one weight scale, [1] float32."""

    start: int
    stop: int
    scale: Buffer


@dataclass(frozen=True)
class Fp8Weight:
    """A product's weight.

    Attributes:
        codes: [out, in] float8_e4m3: FP8 products take it transposed.
        parts: all columns, in order.
        input_scale: [1] float32. step: the same number, for the kernels that quantise.
    """

    codes: Buffer
    parts: tuple[Part, ...]
    input_scale: Buffer
    step: float

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out), as of a weight that is not quantised."""
        outer, inner = self.codes.shape
        return inner, outer

    @property
    def dtype(self) -> str:
        return self.codes.dtype


Weight = Buffer | Fp8Weight


def load_weight(weights: Weights, *names: str, beside: Sequence[str] = ()) -> Weight:
    """One product's weight out of stored tensors [in, out] that lie side by side in it.

    What is stored in FP8 but cannot be one FP8 product (`can_run`) becomes a float16 weight of the same values.

    Args:
        beside: weights of other products that take the same input, which is quantised for all of them or for none.
    """
    if can_run(weights, {*names, *beside}):
        return _load_fp8(weights, names)
    return weights[names[0]] if len(names) == 1 else weights.put_joined(" + ".join(names), *names)


def can_run(weights: Weights, names: Iterable[str]) -> bool:
    """Whether these are FP8 weights that can share an input: one input scale, one width, sizes that cuBLASLt takes."""
    names = tuple(names)
    if any(weights.kind(name) != STORED_FP8 for name in names):
        return False
    inputs = {(weights.scalar(f"{name}.input_scale"), weights.shape(name)[0]) for name in names}
    return len(inputs) == 1 and not any(size % FP8_MULTIPLE for name in names for size in weights.shape(name))


def _load_fp8(weights: Weights, names: tuple[str, ...]) -> Fp8Weight:
    ends = itertools.accumulate(weights.shape(name)[1] for name in names)
    scales = [weights.scalar(f"{name}.scale") for name in names]
    step = weights.scalar(f"{names[0]}.input_scale")
    codes = weights.put_turned(" + ".join(names), *names)
    parts: list[Part] = []
    for i, (start, stop) in enumerate(itertools.pairwise([0, *ends])):
        if i and scales[i] == scales[i - 1]:
            parts[-1] = replace(parts[-1], stop=stop)
        else:
            parts.append(Part(start, stop, weights.put(f"{names[i]}.scale", np.array([scales[i]], np.float32))))
    return Fp8Weight(codes, tuple(parts), weights.put(f"{names[0]}.input_scale", np.array([step], np.float32)), step)


def check_capability(device: Device) -> None:
    """EngineError for a device without FP8 products."""
    info, least = device.info, minimum_of(FP8)
    if info.capability < least:
        raise EngineError(
            f"this bundle has FP8 weights, whose products need compute capability SM{least} (RTX 40 series, L4, H100) or newer; "
            f"{info.name} has SM{info.capability}.",
            OTHER_BACKEND,
        )


def fed(weight: Weight, buffer: Buffer) -> tuple[Buffer, float | None]:
    """The product's input in the memory of a float16 buffer, and the static scale that it is written with, None for none."""
    if isinstance(weight, Fp8Weight):
        return replace(buffer, dtype=FP8), weight.step
    return buffer, None
