"""Writes the bundle's one weights file: safetensors, streamed tensor by tensor.

The `safetensors` package would need all tensors in memory at once and does not tell where each one lies; the ONNX
graphs point at exactly these bytes. Any safetensors reader can read the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
}
_ALIGN = 64


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies in the file: absolute byte offset, byte count, shape."""

    offset: int
    nbytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorFact:
    """What the header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorFact:
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


class WeightsWriter:
    """Announce all tensors, then write them in that order; a context manager.

    Args:
        path: file to create.
        facts: name → dtype and shape, in file order.
    """

    def __init__(self, path: Path, facts: Mapping[str, TensorFact]) -> None:
        self.facts = dict(facts)
        header = _header(self.facts)
        self.placements, offset = {}, len(header)
        for name, fact in self.facts.items():
            self.placements[name] = Placement(offset, fact.nbytes, fact.shape)
            offset += fact.nbytes
        self.bytes = offset
        self._pending = list(self.facts)
        self._file = path.open("wb")
        self._file.write(header)

    def write(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Append tensors; their names, dtypes and shapes must come as announced."""
        for name, tensor in tensors:
            if not self._pending or name != self._pending[0] or TensorFact.of(tensor) != self.facts[name]:
                raise ValueError(f"{name} {TensorFact.of(tensor)} does not come next in the weights file")
            self._pending.pop(0)
            self._file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> WeightsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the file; an error when a tensor was announced and not written."""
        self._file.close()
        if self._pending and error is None:
            raise ValueError(f"{len(self._pending)} announced tensors were not written, first {self._pending[0]}")


def _header(facts: Mapping[str, TensorFact]) -> bytes:
    entries, start = {}, 0
    for name, fact in facts.items():
        entries[name] = {"dtype": _DTYPES[fact.dtype], "shape": list(fact.shape), "data_offsets": [start, start + fact.nbytes]}
        start += fact.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return len(text).to_bytes(8, "little") + text
