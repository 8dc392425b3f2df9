"""cuDNN's graph API through nvidia-cudnn-frontend, without torch: a handle, and graphs that run on device addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..cuda import Device, DeviceBuffer, Stream
from ..errors import EngineError, MissingPackageError

COMPILED_IN_PYTHON = ("sdpa_fwd", "frost")
"""The frontend's own kernels, which it would compile with packages of their own at run time."""


def bindings() -> Any:
    """The package `cudnn`; MissingPackageError with the remedy."""
    try:
        import cudnn
    except (ImportError, OSError) as error:
        raise MissingPackageError(f"cuDNN is not installed ({error}).", "pip install 'hart-edge[fused]'") from error
    return cudnn


class Cudnn:
    """A cuDNN handle on a stream, and scratch for the graphs that need any.

    Scratch grows only while graphs are built. What it was before stays allocated: captured CUDA graphs hold its address.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self.device, self.module = device, bindings()
        with device.active():
            self._handle: Any = _checked("opening cuDNN", self.module.create_handle)
            _checked("giving cuDNN its stream", self.module.set_stream, self._handle, stream.address)
        self._scratches: list[DeviceBuffer] = []

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise EngineError("cuDNN was used after it was closed.", "Load the bundle again.")
        return self._handle

    def types(self, dtype: str) -> Any:
        """cuDNN's name of "float16" or "float32"."""
        return {"float16": self.module.data_type.HALF, "float32": self.module.data_type.FLOAT}[dtype]

    def build(self, what: str, dtype: str, describe: Callable[[Any], Mapping[str, Any]], choose: bool = True) -> CudnnGraph:
        """Build a graph once.

        Args:
            what: named in errors.
            dtype: of its tensors; intermediate results and sums are float32. float32 is true float32, never TF32.
            describe: adds tensors and operations to a `pygraph` and returns the tensors that `run` gets addresses for.
            choose: leave out engines that sum in fewer digits, or in an order that varies; an operation that cuDNN has one
                engine for is better off without.

        Raises EngineError when cuDNN cannot run it on this device.
        """
        kind = self.types(dtype)
        graph = self.module.pygraph(
            io_data_type=kind,
            intermediate_data_type=self.module.data_type.FLOAT,
            compute_data_type=self.module.data_type.FLOAT,
            handle=self.handle,
        )
        with self.device.active():
            tensors = _checked(f"describing {what}", describe, graph)
            _checked(f"planning {what}", self._plan, graph, self._unwanted(dtype) if choose else [])
            size = int(_checked(f"planning {what}", graph.get_workspace_size))
        self._grow(size)
        return CudnnGraph(self, what, graph, dict(tensors))

    def _unwanted(self, dtype: str) -> list[Any]:
        note = self.module.numerical_note
        plain = [note.TENSOR_CORE, note.DOWN_CONVERT_INPUTS] if dtype == "float32" else [note.REDUCED_PRECISION_REDUCTION]
        return [*plain, note.NONDETERMINISTIC]

    def _plan(self, graph: Any, unwanted: list[Any]) -> None:
        graph.deselect_engines(list(COMPILED_IN_PYTHON))
        if unwanted:
            graph.deselect_numeric_notes(unwanted)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self.module.heur_mode.A, self.module.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans(self.module.build_plan_policy.HEURISTICS_CHOICE)

    def _grow(self, size: int) -> None:
        if size > (self._scratches[-1].size if self._scratches else 0):
            self._scratches.append(self.device.buffer(size))

    @property
    def scratch(self) -> int:
        """Address; 0 while no graph needs any."""
        return self._scratches[-1].address if self._scratches else 0

    def close(self) -> None:
        """Idempotent."""
        if self._handle is None:
            return
        with self.device.active():
            self.module.destroy_handle(self._handle)
        self._handle = None
        while self._scratches:
            self._scratches.pop().close()


class CudnnGraph:
    """A built graph; `run` may be captured."""

    def __init__(self, cudnn: Cudnn, what: str, graph: Any, tensors: dict[str, Any]) -> None:
        self._cudnn, self._what, self._graph, self._tensors = cudnn, what, graph, tensors

    def run(self, **addresses: int) -> None:
        """Run on cuDNN's stream; one device address per tensor."""
        pack = {self._tensors[name]: address for name, address in addresses.items()}
        with self._cudnn.device.active():
            _checked(f"running {self._what}", self._graph.execute, pack, self._cudnn.scratch, self._cudnn.handle)


def _checked(doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call cuDNN; its exceptions, which have types of their own, become an EngineError that says what was done."""
    try:
        return function(*arguments)
    except Exception as error:
        raise EngineError(f"{doing} failed: {error}.", "Run `hart-edge bench --backend ort-cuda`, or use the CPU.") from error
