"""cuDNN of the emulated GPU: convolutions as they are described, computed with torch on the emulated memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import EngineError


class Tensor:
    """A tensor of a described cuDNN graph: what it is made from, and its geometry."""

    def __init__(self, operation: str = "", inputs: tuple[Tensor, ...] = (), **facts: Any) -> None:
        self.operation, self.inputs, self.facts = operation, inputs, facts

    def set_output(self, value: bool) -> Tensor:
        return self

    def set_data_type(self, kind: Any) -> Tensor:
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.facts["dim"] = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.facts["stride"] = stride
        return self


class Description:
    """Records what is described, in place of a `pygraph`."""

    def tensor(self, name: str, dim: list[int], stride: list[int]) -> Tensor:
        return Tensor(name=name, dim=dim, stride=stride)

    def conv_fprop(self, image: Tensor, weight: Tensor, padding: list[int], stride: list[int], dilation: list[int]) -> Tensor:
        assert stride == dilation == [1, 1]
        return Tensor("conv", (image, weight), padding=padding)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return Tensor("add", (a, b))


class Graph:
    """A described graph that runs on the emulated memory."""

    def __init__(self, memory: Any, dtype: str, tensors: Mapping[str, Tensor]) -> None:
        self._memory, self._dtype, self._tensors = memory, dtype, tensors

    def run(self, **addresses: int) -> None:
        assert set(addresses) == set(self._tensors)
        places = {id(self._tensors[name]): address for name, address in addresses.items()}
        result = self._value(self._tensors["y"], places)
        self._array(self._tensors["y"], addresses["y"])[...] = result.numpy()

    def _value(self, tensor: Tensor, places: dict[int, int]) -> torch.Tensor:
        if not tensor.operation:
            return torch.from_numpy(self._array(tensor, places[id(tensor)]).astype(np.float32))
        values = [self._value(each, places) for each in tensor.inputs]
        if tensor.operation == "conv":
            return F.conv2d(values[0], values[1], padding=tensor.facts["padding"])
        return values[0] + values[1]

    def _array(self, tensor: Tensor, address: int) -> Array:
        """The tensor as [N, C, H, W], whatever its strides."""
        dim, stride, item = tensor.facts["dim"], tensor.facts["stride"], np.dtype(self._dtype).itemsize
        flat = self._memory.at(address, (math.prod(dim),), self._dtype)
        return np.lib.stride_tricks.as_strided(flat, dim, [s * item for s in stride])


class Cudnn:
    """Args: fuses: whether a convolution may take bias and residual along."""

    def __init__(self, memory: Any, fuses: bool) -> None:
        self._memory, self._fuses = memory, fuses

    def types(self, dtype: str) -> str:
        return dtype

    def build(self, what: str, shape: object, dtype: str, describe: Callable[[Any], Mapping[str, Tensor]]) -> Graph:
        tensors = describe(Description())
        if "bias" in tensors and not self._fuses:
            raise EngineError(f"{what}: no engine.")
        return Graph(self._memory, dtype, tensors)
