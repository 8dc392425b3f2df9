"""An operator of the domain `hart` that a graph may hold, as data: what its ONNX function body says, and what its TensorRT
plugin promises and launches. Knows nothing of TensorRT or ONNX packages; `plugin.py` makes a plugin of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .ahead import AheadKernel
from .kernel import FLOATS, Buffer, Kernel, Launch

DOMAIN = "hart"
PLUGIN_VERSION = "1"
Shape = tuple[Any, ...]
"""Dimensions: numbers where sizes are known, whatever stands for them where they are not yet."""

Attributes = Mapping[str, float | int]
Buffers = Sequence[Buffer]


def no_scratch(shape: tuple[int, ...], dtype: str) -> int:
    return 0


@dataclass(frozen=True)
class GraphOp:
    """One operator.

    Attributes:
        name: its type in a graph.
        function: the ONNX function that computes the same with standard operators.
        inputs, outputs: how many.
        attributes: kind (float or int) by name.
        shapes: shapes of the outputs from those of the inputs; all tensors have the element type of the first input.
        launches: what computes it. Buffers have the shapes of the graph, channels last where `channels_last` says so, and
            scratch memory follows the outputs: its address, 0 when there is none.
        kernels: all that `launches` may launch.
        channels_last: the tensors of four dimensions, [B, C, H, W] in the graph, lie in memory as [B, H, W, C].
        scratch: bytes of scratch memory for a first input of this shape (as it lies in memory) and type.
        ahead: the kernel that an engine can carry; None where one kernel cannot do it.
    """

    name: str
    function: str
    inputs: int
    outputs: int
    attributes: Mapping[str, type[float] | type[int]]
    shapes: Callable[[Sequence[Shape], Attributes], tuple[Shape, ...]]
    launches: Callable[[Buffers, Buffers, int, Attributes], tuple[Launch, ...]]
    kernels: tuple[Kernel, ...]
    channels_last: bool = False
    scratch: Callable[[tuple[int, ...], str], int] = no_scratch
    ahead: AheadKernel | None = None
    dtypes: tuple[str, ...] = field(default=FLOATS)


def rows_of(buffer: Buffer) -> Buffer:
    """[…, C] as [rows, C]: the same memory."""
    rows = 1
    for size in buffer.shape[:-1]:
        rows *= size
    return Buffer(buffer.address, (rows, buffer.shape[-1]), buffer.dtype)
