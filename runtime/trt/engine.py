"""`Engine` over a TensorRT session: checks a call, puts every tensor where TensorRT expects it, hands the outputs back."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np

from hart_edge.plugins.adapter import Faults

from ..device_memory import DeviceMemory
from ..engine import DeviceTensor, Tensor, TensorInfo, Tensors, check_call
from ..errors import EngineError, GpuMemoryError
from .session import Places, Session
from .sidecar import BindingFacts, EngineFacts


class Scratch:
    """One block of scratch memory for all engines of a GPU, which run one after the other; as large as the largest needs.

    Args:
        memory: gives it.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory, self._blocks = memory, list[DeviceTensor]()
        self._wanted = 1

    def want(self, size: int) -> None:
        self._wanted = max(self._wanted, size)

    def place(self) -> tuple[int, int]:
        """Address and bytes. Blocks that have become too small stay: captured graphs hold their addresses."""
        if not self._blocks or self._blocks[-1].nbytes < self._wanted:
            self._blocks.append(self._memory.empty((self._wanted,), np.uint8))
        return self._blocks[-1].address, self._blocks[-1].nbytes


@dataclass(frozen=True)
class Shared:
    """What the engines of one backend share. faults: of plugins. rebuild: the command that builds the engines anew."""

    memory: DeviceMemory
    scratch: Scratch
    faults: Faults
    rebuild: str


class TrtEngine:
    """Implements `Engine`.

    Args:
        facts: what `engines.json` says of the engine.
        session: the engine, loaded.
        shared: what it has in common with the backend's other engines.
    """

    def __init__(self, name: str, facts: EngineFacts, session: Session, shared: Shared) -> None:
        self.name, self._facts, self._session = name, facts, session
        self._memory, self._scratch, self._faults, self._remedy = shared.memory, shared.scratch, shared.faults, shared.rebuild
        self.inputs = {binding.name: _info(binding) for binding in facts.inputs}
        self.outputs = {binding.name: _info(binding) for binding in facts.outputs}
        self._closed = False
        declared = (sorted(self.inputs), sorted(self.outputs))
        if declared != (sorted(session.inputs), sorted(session.outputs)):
            raise EngineError(f"engine {name} has other inputs and outputs than engines.json says.", self._remedy)
        self._scratch.want(session.scratch)

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """See `Engine.run`."""
        if self._closed:
            raise EngineError(f"engine {self.name} is closed.", "Load the bundle again.")
        check_call(self, inputs, outputs)
        self._check_ranges(inputs)
        try:
            self._compute(inputs, outputs)
        except GpuMemoryError:
            if not self._memory.trim():
                raise
            self._compute(inputs, outputs)

    def _check_ranges(self, inputs: Tensors) -> None:
        """EngineError for a shape that the engine was not built for."""
        for binding in self._facts.inputs:
            shape = inputs[binding.name].shape
            if any(not low <= size <= high for size, low, high in zip(shape, binding.least, binding.largest, strict=True)):
                raise EngineError(
                    f"engine {self.name}: {binding.name} was given shape {list(shape)}; it was built for {list(binding.least)} to "
                    f"{list(binding.largest)}.",
                    f"{self._remedy} --batch N, N being the most pictures at a time.",
                )

    def _compute(self, inputs: Tensors, outputs: Tensors) -> None:
        placed = {name: self._placed(name, tensor) for name, tensor in inputs.items()}
        self._session.set_shapes({name: tensor.shape for name, tensor in placed.items()})
        results = {name: self._result(name, outputs.get(name), placed) for name in self.outputs}
        places: Places = {name: (tensor.shape, _address(tensor)) for name, tensor in (placed | results).items()}
        try:
            self._session.run(places, self._scratch.place(), self._memory.stream)
        finally:  # what a plugin noted says more than TensorRT, which only knows that it failed
            self._faults.check(f"running engine {self.name}")
        for name, tensor in outputs.items():
            result = results[name]
            if not isinstance(tensor, DeviceTensor) and isinstance(result, DeviceTensor):
                self._memory.read(result, tensor)

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        """The input where TensorRT reads it: on the GPU, or in the host's memory for what its shapes depend on."""
        if name in self._session.host:
            return self._memory.download(tensor)
        return tensor if isinstance(tensor, DeviceTensor) else self._memory.upload(tensor)

    def _result(self, name: str, tensor: Tensor | None, placed: dict[str, Tensor]) -> Tensor:
        """Memory for an output: the caller's, that of the input that it is written into, else new."""
        source = self._session.aliases.get(name)
        if source is not None:
            if tensor is not None and _address(tensor) != _address(placed[source]):
                raise EngineError(f"engine {self.name} writes {name} into the memory of {source}; give the same tensor for both.")
            return placed[source]
        if isinstance(tensor, DeviceTensor):
            return tensor
        return self._memory.empty(self._session.output_shape(name) if tensor is None else tensor.shape, self.outputs[name].dtype)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._memory.stream.synchronize()
            self._session.close()

    def __enter__(self) -> TrtEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _info(binding: BindingFacts) -> TensorInfo:
    return TensorInfo(binding.name, np.dtype(binding.dtype), binding.shape)


def _address(tensor: Tensor) -> int:
    return tensor.address if isinstance(tensor, DeviceTensor) else int(tensor.ctypes.data)
