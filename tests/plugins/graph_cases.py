"""Cases for the operators of graphs: inputs as a graph has them, attributes, and outputs from the NumPy truths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from devices import Array, native, values

from hart_edge.plugins.group_norm_silu import group_norm_silu
from hart_edge.plugins.layer_norm_modulate import layer_norm_modulate
from hart_edge.plugins.rms_norm import rms_norm
from hart_edge.plugins.split_rotary import split_rotary
from hart_edge.plugins.swiglu import swiglu

TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
"""TensorRT's names."""


@dataclass(frozen=True)
class GraphCase:
    """One call of an operator.

    Attributes:
        shapes: of the inputs.
        truth: outputs from the inputs.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: dict[str, float | int]
    truth: Callable[..., tuple[Array, ...]]
    scale: float = 1.0

    def inputs(self, dtype: str) -> list[Array]:
        return [values(shape, dtype, seed, self.scale) for seed, shape in enumerate(self.shapes)]

    def outputs(self, dtype: str) -> tuple[Array, ...]:
        return self.truth(*(native(x, dtype) for x in self.inputs(dtype)))


def _add_rms_norm(x: Array, residual: Array, weight: Array) -> tuple[Array, ...]:
    flat = (tensor.reshape(-1, x.shape[-1]) for tensor in (x, residual))
    y, total = rms_norm(next(flat), weight, 1e-6, next(flat))
    return y.reshape(x.shape), total.reshape(x.shape)


def _layer_norm(x: Array, modulation: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
    return (layer_norm_modulate(x, modulation, 0, 1, 1e-6, (weight, bias)),)


def _group_norm(x: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
    return (group_norm_silu(x.transpose(0, 2, 3, 1), weight, bias, 1e-6).transpose(0, 3, 1, 2),)


def cases() -> list[GraphCase]:
    """Two of every operator: sizes of the released model, and odd ones."""
    eps = {"epsilon": 1e-6}
    return [
        GraphCase("AddRmsNorm", ((6, 1536), (6, 1536), (1536,)), eps, _add_rms_norm),
        GraphCase("AddRmsNorm", ((2, 19, 111), (2, 19, 111), (111,)), eps, _add_rms_norm),
        GraphCase("SplitRotary", ((2 * 25, 3 * 24 * 64), (2, 1, 25, 64), (2, 1, 25, 64)), {"heads": 24}, lambda *x: split_rotary(*x, 24)),
        GraphCase("SplitRotary", ((3 * 7, 3 * 5 * 6), (3, 1, 7, 6), (3, 1, 7, 6)), {"heads": 5}, lambda *x: split_rotary(*x, 5)),
        GraphCase("SwiGlu", ((19, 4096), (19, 4096)), {}, lambda gate, up: (swiglu(gate, up),), 4.0),
        GraphCase("SwiGlu", ((2, 3, 989), (2, 3, 989)), {}, lambda gate, up: (swiglu(gate, up),), 4.0),
        GraphCase("LayerNormModulate", ((19, 1024), (19, 3072), (1024,), (1024,)), eps, _layer_norm),
        GraphCase("LayerNormModulate", ((7, 111), (7, 333), (111,), (111,)), eps, _layer_norm),
        GraphCase("GroupNormSilu", ((2, 160, 16, 24), (160,), (160,)), eps | {"height": 16, "width": 24}, _group_norm),
        GraphCase("GroupNormSilu", ((1, 32, 3, 5), (32,), (32,)), eps | {"height": 3, "width": 5}, _group_norm),
    ]


def identity(case: GraphCase) -> str:
    return f"{case.op}-{'x'.join(map(str, case.shapes[0]))}"


def description(shape: tuple[int, ...], dtype: str, layout: str = "LINEAR") -> Any:
    """What TensorRT tells a plugin of a tensor, as a plain object."""
    return SimpleNamespace(dims=shape, type=SimpleNamespace(name=TYPES[dtype]), format=SimpleNamespace(name=layout))
