"""One run of an engine: its tensors on the device, its scratch, and the work put together for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hart_edge.plugins import Buffer

from ..device_memory import DeviceMemory
from ..engine import Array, DeviceTensor, Tensors
from .buffers import view
from .loop import as_buffer
from .model import FusedModel
from .program import Program


@dataclass
class Call:
    """The tensors of one run. Implements `workspace.Memory`: scratch is leased, and freed with the call."""

    model: FusedModel
    memory: DeviceMemory
    inputs: Tensors
    outputs: Tensors
    _leases: dict[str, DeviceTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.program = Program(self.model.context)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: str, phase: str = "") -> Buffer:
        """See `workspace.Memory.buffer`."""
        if name not in self._leases:
            self._leases[name] = self.memory.empty(shape, np.dtype(dtype))
        return as_buffer(self._leases[name])

    def input(self, name: str, *shape: int) -> Buffer:
        """The input on the device, under another shape if one is given."""
        tensor = self.inputs[name]
        if not isinstance(tensor, DeviceTensor):
            tensor = self._leases[f"input {name}"] = self.memory.upload(tensor)
        buffer = as_buffer(tensor)
        return view(buffer, *shape) if shape else buffer

    def host(self, name: str) -> Array:
        """The input in host memory."""
        return self.memory.download(self.inputs[name])

    def output(self, name: str, *shape: int) -> Buffer:
        """Where the output goes, under another shape if one is given; it must have been asked for."""
        tensor = self.outputs[name]
        if not isinstance(tensor, DeviceTensor):
            tensor = self._leases[f"output {name}"] = self.memory.empty(tensor.shape, tensor.dtype)
        buffer = as_buffer(tensor)
        return view(buffer, *shape) if shape else buffer

    def changed(self, source: str, target: str) -> Buffer:
        """The output `target`, which starts as the input `source`: the same memory where the caller gave one for both."""
        before = self.input(source)
        wanted = self.outputs.get(target)
        if isinstance(wanted, DeviceTensor):
            after = as_buffer(wanted)
        elif f"input {source}" in self._leases:
            self._leases[f"output {target}"] = self._leases[f"input {source}"]
            return before
        else:
            after = self.buffer(f"output {target}", before.shape, before.dtype)
        if after.address != before.address:
            self.program.copy(before, after)
        return after

    def finish(self) -> None:
        """Run the program, and bring the outputs that are arrays down."""
        self.program.plain()
        for name, tensor in self.outputs.items():
            lease = self._leases.get(f"output {name}")
            if lease is not None and not isinstance(tensor, DeviceTensor):
                self.memory.read(lease, tensor)
        self.model.context.stream.synchronize()
