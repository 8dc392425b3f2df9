"""Buffers of an engine that runs as CUDA graphs: a captured graph works at fixed addresses, so calls copy in and out.

What is copied is small: latents, tokens, coefficients, the picture.
"""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from .device_memory import DeviceMemory
from .engine import DeviceTensor, Tensors


class Slot:
    """The buffers of all calls of one shape, and the number of their graph, which ONNX Runtime captures at the first."""

    def __init__(self, memory: DeviceMemory, number: int, inputs: Tensors, outputs: Tensors) -> None:
        self._memory = memory
        self.inputs = {name: memory.empty(tensor.shape, tensor.dtype) for name, tensor in inputs.items()}
        self.outputs = {name: memory.empty(tensor.shape, tensor.dtype) for name, tensor in outputs.items()}
        self.options = ort.RunOptions()
        self.options.add_run_config_entry("gpu_graph_id", str(number))

    def fill(self, inputs: Tensors) -> None:
        for name, tensor in inputs.items():
            self._memory.write(self.inputs[name], tensor)

    def hand_out(self, outputs: Tensors) -> None:
        for name, tensor in outputs.items():
            if isinstance(tensor, DeviceTensor):
                self._memory.write(tensor, self.outputs[name])
            else:
                self._memory.read(self.outputs[name], tensor)


class Slots:
    """One slot per combination of shapes; there are as many as scales and batch sizes in use."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._slots: dict[Any, Slot] = {}

    def of(self, inputs: Tensors, outputs: Tensors) -> Slot:
        """The slot of a checked call, made at its first use."""
        key = (_shapes(inputs), _shapes(outputs))
        if key not in self._slots:
            self._slots[key] = Slot(self._memory, len(self._slots) + 1, inputs, outputs)
        return self._slots[key]


def _shapes(tensors: Tensors) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tensors[name].shape) for name in sorted(tensors))
