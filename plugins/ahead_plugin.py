"""The operators of `graph_ops.py` as TensorRT plugins whose kernels an engine carries (`tensorrt.plugin`, ahead of time).

Such an engine runs without this package. The module is an argument: `tensorrt.plugin`, of TensorRT 10.13 or newer; that of
TensorRT-RTX lacks this form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .adapter import DTYPES, Faults
from .ahead import ENTRY, Entry, entry_source
from .graph_op import DOMAIN, Attributes, GraphOp

PtxOf = Callable[[str], bytes]


def register_ahead(trtp: Any, ops: Iterable[GraphOp], compile_ptx: PtxOf, faults: Faults) -> None:
    """Register every operator's description and kernel.

    Args:
        trtp: `tensorrt.plugin`.
        ops: operators with an `ahead`.
        compile_ptx: from CUDA C++ to PTX for the GPU that the engine is built for.
        faults: hears of what goes wrong; the exception goes on to TensorRT.
    """
    for op in ops:
        trtp.register(f"{DOMAIN}::{op.name}")(_describe(trtp, op, faults))
        trtp.aot_impl(f"{DOMAIN}::{op.name}")(_implement(trtp, op, compile_ptx, faults))


def _describe(trtp: Any, op: GraphOp, faults: Faults) -> Callable[..., Any]:
    """The function that gives the outputs' shapes; its signature is how TensorRT learns of inputs and attributes."""

    def describe(*arguments: Any, **attributes: Any) -> Any:
        with _noted(faults, f"{op.name}.register"):
            tensors = arguments[: op.inputs]
            shapes = op.shapes([tuple(tensor.shape_expr) for tensor in tensors], attributes)
            return tuple(trtp.from_shape_expr(shape, tensors[0].dtype) for shape in shapes)

    describe.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*_parameters(_inputs(op), trtp.TensorDesc), *_attribute_parameters(op)],
        return_annotation=tuple[(trtp.TensorDesc,) * op.outputs],  # type: ignore[misc]
    )
    return describe


def _implement(trtp: Any, op: GraphOp, compile_ptx: PtxOf, faults: Faults) -> Callable[..., Any]:
    """The function that gives the kernel: its name, its PTX, the launch, and the numbers between inputs and outputs."""

    def implement(*arguments: Any) -> Any:
        with _noted(faults, f"{op.name}.aot_impl"):
            tensors, values = arguments[: op.inputs], arguments[op.inputs : -2]
            attributes: Attributes = dict(zip(op.attributes, values, strict=True))
            dtype = DTYPES[tensors[0].dtype.name]
            entry = entry_of(op, [_sizes(tensor.shape_expr) for tensor in tensors], dtype, attributes)
            launch = trtp.KernelLaunchParams(grid_x=entry.grid[0], grid_y=entry.grid[1], block_x=entry.threads)
            numbers = trtp.SymIntExprs.from_tuple(tuple(trtp.SymInt32(number) for number in entry.numbers))
            assert op.ahead is not None
            text = entry_source(op.ahead, entry, dtype, op.inputs, op.outputs)
            return ENTRY, compile_ptx(text), launch, numbers

    implement.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*_parameters([*_inputs(op), *op.attributes, "outputs", "tactic"], inspect.Parameter.empty)],
        return_annotation=tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymExprs],
    )
    return implement


def entry_of(op: GraphOp, shapes: Sequence[tuple[Any, ...]], dtype: str, attributes: Mapping[str, float | int]) -> Entry:
    """What a node of these shapes launches."""
    if op.ahead is None:
        raise ValueError(f"{op.name} has no kernel to be taken into an engine")
    return op.ahead.entry(shapes, dtype, attributes)


def _sizes(shape: Iterable[Any]) -> tuple[Any, ...]:
    """Dimensions that are known as numbers, the others as they are."""
    return tuple(size.constant_value() if size.is_constant else size for size in shape)


def _inputs(op: GraphOp) -> list[str]:
    return [f"in{k}" for k in range(op.inputs)]


def _parameters(names: Iterable[str], annotation: Any) -> list[inspect.Parameter]:
    return [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation) for name in names]


def _attribute_parameters(op: GraphOp) -> list[inspect.Parameter]:
    return [parameter for name, kind in op.attributes.items() for parameter in _parameters([name], kind)]


class _noted:
    """Notes an exception of its block, which goes on."""

    def __init__(self, faults: Faults, where: str) -> None:
        self._faults, self._where = faults, where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._faults.add(self._where, error)
