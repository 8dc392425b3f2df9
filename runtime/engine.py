"""What an engine is: named, typed tensors in and out, over memory that the caller owns. `backends.py` lists those there are.

Every shape, dtype and layout check of the runtime is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from .errors import EngineError
from .memory import Array, DeviceTensor, Tensor

__all__ = ["Array", "DeviceTensor", "Engine", "Tensor", "TensorInfo", "Tensors", "check_call"]

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class TensorInfo:
    """One binding: a dimension is a number, or a symbol that must have one value within a call."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


class Engine(Protocol):
    """A loaded engine. A context manager; `close` frees it and may be called twice."""

    name: str
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """Compute into `outputs`, which the caller allocates; outputs that are not named are not computed.

        Arrays are taken by every engine; device tensors by an engine that runs on their device, which copies what it is
        given as arrays. An output may be the very memory of an input (the KV cache is updated in place that way).
        Raises EngineError on a missing or unknown name, a wrong dtype or shape, or memory that is not contiguous.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def check_call(engine: Engine, inputs: Tensors, outputs: Tensors) -> None:
    """Check all tensors of one call against the engine's bindings."""
    missing = sorted(set(engine.inputs) - set(inputs))
    unknown = sorted((set(inputs) - set(engine.inputs)) | (set(outputs) - set(engine.outputs)))
    if missing or unknown or not outputs:
        raise EngineError(f"engine {engine.name}: inputs missing: {missing}; names unknown: {unknown}; outputs asked for: {len(outputs)}.")
    symbols: dict[str, int] = {}
    for group, infos in ((inputs, engine.inputs), (outputs, engine.outputs)):
        for name, tensor in group.items():
            _check_tensor(engine.name, infos[name], tensor, symbols)


def _check_tensor(engine: str, info: TensorInfo, tensor: Tensor, symbols: dict[str, int]) -> None:
    if tensor.dtype != info.dtype:
        raise EngineError(f"engine {engine}: {info} was given {tensor.dtype}.")
    fits = len(tensor.shape) == len(info.shape)
    for want, got in zip(info.shape, tensor.shape, strict=False):
        known = symbols.setdefault(want, got) if isinstance(want, str) else want
        fits = fits and known == got
    if not fits:
        raise EngineError(f"engine {engine}: {info} was given shape {list(tensor.shape)}; symbols so far: {symbols}.")
    if isinstance(tensor, np.ndarray) and not tensor.flags.c_contiguous:
        raise EngineError(f"engine {engine}: {info} was given memory that is not contiguous.", "Pass np.ascontiguousarray(…).")
