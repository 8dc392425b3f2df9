"""What a plugin answers and launches for one node of a graph, from descriptions of tensors alone.

Descriptions are whatever has `dims`, `type` and `format`, the latter two with a `name` as TensorRT's enumerations have: its own
objects, or any others. So nothing of TensorRT is needed here; `plugin.py` puts this behind its interfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hart_edge.runtime.errors import EngineError

from .graph_op import GraphOp, Shape
from .kernel import Buffer, Launch

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""Element types by TensorRT's names."""

LINEAR = "LINEAR"
CHANNELS_LAST = {"FLOAT": "HWC", "HALF": "HWC8", "BF16": "HWC8"}
"""TensorRT's names of the layouts [B, H, W, C]; those in eights pad C to a multiple of 8, which ours is anyway."""


@dataclass(frozen=True)
class Adapter:
    """One operator with the attributes of one node."""

    op: GraphOp
    attributes: dict[str, float | int]

    @classmethod
    def of(cls, op: GraphOp, fields: Iterable[Any]) -> Adapter:
        """From plugin fields, objects with `name` and `data`; EngineError for an attribute that is missing or no single number."""
        found = {field.name: np.asarray(field.data).reshape(-1) for field in fields if field.name in op.attributes}
        wrong = [name for name in op.attributes if name not in found or found[name].size != 1]
        if wrong:
            raise EngineError(f"plugin {op.name} was made without the attributes {wrong}; expected one number each of {[*op.attributes]}.")
        return cls(op, {name: kind(found[name][0]) for name, kind in op.attributes.items()})

    def output_shapes(self, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
        """Of dimensions that may be expressions; numbers are constants."""
        return self.op.shapes(inputs, self.attributes)

    def supports(self, position: int, tensors: Sequence[Any]) -> bool:
        """Whether the tensor at `position` may have its type and layout, given those before it."""
        kind = tensors[position].type.name
        return kind in DTYPES and DTYPES[kind] in self.op.dtypes and kind == tensors[0].type.name and self._layout_fits(tensors[position])

    def _layout_fits(self, tensor: Any) -> bool:
        last = self.op.channels_last and len(tensor.dims) == 4
        return bool(tensor.format.name == (CHANNELS_LAST[tensor.type.name] if last else LINEAR))

    def scratch_bytes(self, x: Any) -> int:
        """Scratch memory for a first input of this description."""
        return self.op.scratch(self._memory_shape(x), DTYPES[x.type.name])

    def launches(
        self, inputs: Sequence[Any], outputs: Sequence[Any], addresses: Sequence[int], results: Sequence[int], scratch: int
    ) -> tuple[Launch, ...]:
        """What computes the node.

        Args:
            inputs, outputs: descriptions. addresses, results: where the tensors lie.
            scratch: address of `scratch_bytes` bytes.
        """
        given = [self._buffer(tensor, address) for tensor, address in zip(inputs, addresses, strict=True)]
        made = [self._buffer(tensor, address) for tensor, address in zip(outputs, results, strict=True)]
        return self.op.launches(given, made, scratch, self.attributes)

    def _buffer(self, tensor: Any, address: int) -> Buffer:
        return Buffer(int(address), self._memory_shape(tensor), DTYPES[tensor.type.name])

    def _memory_shape(self, tensor: Any) -> tuple[int, ...]:
        shape = tuple(int(size) for size in tensor.dims)
        if self.op.channels_last and len(shape) == 4:
            batch, channels, height, width = shape
            return batch, height, width, channels
        return shape


Launcher = Callable[[Launch, int], None]
"""Launches on the stream of that address."""


class Faults:
    """What went wrong inside callbacks. TensorRT drops exceptions there, or crashes: nobody else would hear of them."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._cancelled = False

    def add(self, where: str, error: BaseException) -> None:
        self._cancelled = self._cancelled or isinstance(error, KeyboardInterrupt)
        self._messages.append(f"{where}: {type(error).__name__}: {error}")

    def check(self, what: str) -> None:
        """EngineError with everything that went wrong since the last check; KeyboardInterrupt if that was Ctrl-C."""
        messages, self._messages = self._messages, []
        cancelled, self._cancelled = self._cancelled, False
        if cancelled:
            raise KeyboardInterrupt
        if messages:
            raise EngineError(
                f"a plugin failed while {what}: {' | '.join(dict.fromkeys(messages))}", "Build without plugins: --plugins none."
            )
