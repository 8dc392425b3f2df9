"""cuDNN's graph API through nvidia-cudnn-frontend, without torch: a handle, and graphs that run on device addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from ..cuda import Device, DeviceBuffer, Stream
from ..errors import EngineError, MissingPackageError
from .library_errors import OPENING, checked, closed
from .plans import Plans

COMPILED_IN_PYTHON = ("sdpa_fwd", "frost")
"""The frontend's own kernels, which it would compile with packages of their own at run time."""
CANDIDATES = 24
"""Plans that are measured of those that cuDNN's heuristic lists, the best first."""
MOST_SCRATCH = 64 << 20
"""Bytes that a measured plan may take as scratch where there is not more already."""


def bindings() -> Any:
    """The package `cudnn`; MissingPackageError with the remedy."""
    try:
        import cudnn
    except (ImportError, OSError) as error:
        raise MissingPackageError(f"cuDNN is not installed ({error}).", "pip install 'hart-edge[fused]'") from error
    return cudnn


class Cudnn:
    """A cuDNN handle on a stream, and scratch for the graphs that need any.

    Scratch grows only while graphs are built or measured. What it was before stays allocated: captured CUDA graphs hold its
    address.

    Args:
        plans: measures candidates, and keeps the fastest.
    """

    def __init__(self, device: Device, stream: Stream, plans: Plans) -> None:
        self.device, self.plans, self.module = device, plans, bindings()
        with device.active():
            self._handle: Any = checked(device, "opening cuDNN", self.module.create_handle, remedy=OPENING)
            checked(device, "giving cuDNN its stream", self.module.set_stream, self._handle, stream.address)
            self._version = f"cuDNN {self.module.backend_version()}, frontend {self.module.__version__}"
        self._scratches: list[DeviceBuffer] = []

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise EngineError("cuDNN was used after it was closed.", "Load the bundle again.")
        return self._handle

    def types(self, dtype: str) -> Any:
        """cuDNN's name of "float16" or "float32"."""
        return {"float16": self.module.data_type.HALF, "float32": self.module.data_type.FLOAT}[dtype]

    def build(self, what: str, shape: object, dtype: str, describe: Callable[[Any], Mapping[str, Any]], choose: bool = True) -> CudnnGraph:
        """Build a graph once: from the plan that an earlier start kept, or by cuDNN's heuristic.

        Args:
            what: named in errors. shape: its `repr`, with `what`, tells graphs apart.
            dtype: of its tensors; intermediate results and sums are float32. float32 is true float32, never TF32.
            describe: adds tensors and operations to a `pygraph` and returns the tensors that `run` gets addresses for.
            choose: leave out engines that sum in fewer digits, or in an order that varies; an operation that cuDNN has one
                engine for is better off without.

        Raises EngineError when cuDNN cannot run it on this device.
        """
        identity = f"{self._version}: {what}, {shape!r}, {dtype}, {choose}"
        return self._kept(what, identity) or self._planned(what, identity, dtype, describe, choose)

    def _kept(self, what: str, identity: str) -> CudnnGraph | None:
        """The graph with the plan that was kept for it; None without one, or with one that cuDNN does not take."""
        found = self.plans.find(identity)
        if found is None:
            return None
        facts, data = found
        try:
            with self.device.active():
                graph = checked(self.device, f"taking the kept plan of {what}", self.module.pygraph, handle=self.handle)
                checked(self.device, f"taking the kept plan of {what}", graph.deserialize, self.handle, data)
                self.grow(int(checked(self.device, f"taking the kept plan of {what}", graph.get_workspace_size)))
        except EngineError:
            return None  # planned again, and kept again
        return CudnnGraph(self, what, identity, graph, facts["tensors"], 0)

    def _planned(self, what: str, identity: str, dtype: str, describe: Callable[[Any], Mapping[str, Any]], choose: bool) -> CudnnGraph:
        graph = self.module.pygraph(
            io_data_type=self.types(dtype),
            intermediate_data_type=self.module.data_type.FLOAT,
            compute_data_type=self.module.data_type.FLOAT,
            handle=self.handle,
        )
        with self.device.active():
            tensors = checked(self.device, f"describing {what}", describe, graph)
            checked(self.device, f"planning {what}", self._plan, graph, self._unwanted(dtype) if choose else [])
            self.grow(int(checked(self.device, f"planning {what}", graph.get_workspace_size)))
            candidates = min(CANDIDATES, int(checked(self.device, f"planning {what}", graph.get_execution_plan_count)))
        return CudnnGraph(self, what, identity, graph, {name: tensor.get_uid() for name, tensor in tensors.items()}, candidates)

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

    def grow(self, size: int) -> None:
        """Have so many bytes of scratch."""
        if size > self.scratch_size:
            self._scratches.append(self.device.buffer(size))

    @property
    def scratch(self) -> int:
        """Address; 0 while no graph needs any."""
        return self._scratches[-1].address if self._scratches else 0

    @property
    def scratch_size(self) -> int:
        """Bytes."""
        return self._scratches[-1].size if self._scratches else 0

    def close(self) -> None:
        """Idempotent."""
        if self._handle is None:
            return
        closed(self.device, "closing cuDNN", self.module.destroy_handle, self._handle)
        self._handle = None
        while self._scratches:
            self._scratches.pop().close()


class CudnnGraph:
    """A built graph; `run` may be captured, the first one not: it measures the candidates, if there are any.

    Args:
        tensors: cuDNN's numbers of the tensors that `run` gets addresses for.
        candidates: plans to choose from; 0 when the choice is made.
    """

    def __init__(self, cudnn: Cudnn, what: str, identity: str, graph: Any, tensors: dict[str, int], candidates: int) -> None:
        self._cudnn, self._what, self._identity, self._graph, self._tensors = cudnn, what, identity, graph, tensors
        self._candidates = candidates

    def run(self, **addresses: int) -> None:
        """Run on cuDNN's stream; one device address per tensor. No output may be an input: a first run runs several times."""
        pack = {self._tensors[name]: address for name, address in addresses.items()}
        with self._cudnn.device.active():
            if self._candidates:
                self._choose(pack)
            checked(self._cudnn.device, f"running {self._what}", self._graph.execute, pack, self._cudnn.scratch, self._cudnn.handle)

    def _choose(self, pack: dict[int, int]) -> None:
        """Measure the candidates, take the fastest, and keep it."""
        count, self._candidates = self._candidates, 0
        with _Trial(self._cudnn, self._what, self._graph, pack) as trial:
            best = self._cudnn.plans.fastest(range(count), trial.run)
        if best is None:
            return  # what the heuristic chose will say what is wrong
        checked(self._cudnn.device, f"planning {self._what}", self._graph.build_plan_at_index, best)
        self._cudnn.grow(int(checked(self._cudnn.device, f"planning {self._what}", self._graph.get_workspace_size)))
        with suppress(EngineError):  # a plan that cuDNN cannot write down is measured again by the next start
            data = checked(self._cudnn.device, f"keeping the plan of {self._what}", self._graph.serialize, as_bytes=True)
            self._cudnn.plans.keep(self._identity, {"tensors": self._tensors}, data)


class _Trial:
    """Runs the candidates of one graph, with scratch of its own where they need more than there is.

    The candidate is selected, then run: running it by its number looks through the whole list every time, for a millisecond.
    """

    def __init__(self, cudnn: Cudnn, what: str, graph: Any, pack: dict[int, int]) -> None:
        self._cudnn, self._what, self._graph, self._pack = cudnn, what, graph, pack
        self._scratch: DeviceBuffer | None = None
        self._selected: tuple[int, int] | None = None

    def run(self, index: int) -> None:
        if self._selected is None or self._selected[0] != index:
            self._selected = None
            self._selected = index, self._select(index)
        device, scratch = self._cudnn.device, self._selected[1]
        checked(device, f"running {self._what}", self._graph.execute, self._pack, scratch, self._cudnn.handle)

    def _select(self, index: int) -> int:
        """The address of its scratch."""
        checked(self._cudnn.device, f"planning {self._what}", self._graph.build_plan_at_index, index)
        size = int(checked(self._cudnn.device, f"planning {self._what}", self._graph.get_workspace_size))
        if size <= self._cudnn.scratch_size:
            return self._cudnn.scratch
        if size > MOST_SCRATCH:
            raise EngineError(f"plan {index} of {self._what} takes {size} bytes of scratch; expected at most {MOST_SCRATCH}.")
        if self._scratch is None:
            self._scratch = self._cudnn.device.buffer(MOST_SCRATCH)
        return self._scratch.address

    def __enter__(self) -> _Trial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._scratch is not None:
            self._scratch.close()
