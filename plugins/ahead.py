"""A kernel in the form that TensorRT takes into an engine: PTX of one entry whose parameters are the input addresses, then
32-bit numbers, then the output addresses.

The kernels of `plugins/` have their parameters in another order and some that are no 32-bit integers, so an entry of its own
calls them, with everything that the build knows written into it as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from .kernel import C_TYPES, sources

ENTRY = "hart_entry"


@dataclass(frozen=True)
class Entry:
    """What one node launches.

    Attributes:
        call: C++ expression that runs the kernel, over the parameters in0, in1, …, n0, n1, …, out0, out1, ….
        numbers: the values of n0, n1, …, which may be expressions of dimensions that vary.
        grid: blocks along x and y, likewise.
        threads: of a block, along x.
    """

    call: str
    numbers: tuple[Any, ...]
    grid: tuple[Any, Any]
    threads: int


@dataclass(frozen=True)
class AheadKernel:
    """How an operator is launched ahead of time.

    Attributes:
        source: the .cuh file that holds the kernel.
        entry: from the shapes of the inputs, the element type's name and the attributes to the entry. Dimensions that vary are
            expressions, which can be multiplied; the last dimension of every tensor is a number.
    """

    source: str
    entry: Callable[[Sequence[tuple[Any, ...]], str, Mapping[str, float | int]], Entry]


def product(sizes: Sequence[Any]) -> Any:
    """Of numbers or expressions; 1 of none."""
    number, unknown = prod(size for size in sizes if isinstance(size, int)), [size for size in sizes if not isinstance(size, int)]
    if not unknown:
        return number
    total: Any = unknown[0]
    for factor in (*unknown[1:], *([number] if number != 1 else [])):
        total = total * factor
    return total


def entry_source(kernel: AheadKernel, entry: Entry, dtype: str, inputs: int, outputs: int) -> str:
    """The CUDA C++ of the entry.

    The kernel becomes a device function, because one kernel cannot call another; its text stays the one that everything else
    runs.
    """
    kind = C_TYPES[dtype]
    parameters = [f"const {kind}* in{k}" for k in range(inputs)]
    parameters += [f"int n{k}" for k in range(len(entry.numbers))]
    parameters += [f"{kind}* out{k}" for k in range(outputs)]
    body = sources()[kernel.source].replace("__global__ void", "__device__ __forceinline__ void")
    return f"""{body}
extern "C" __global__ void {ENTRY}({", ".join(parameters)}) {{
    {entry.call};
}}
"""
