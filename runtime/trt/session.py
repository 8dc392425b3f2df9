"""One deserialised engine: its context, its graphs and its runtime cache. The only file that knows how the two packages differ
when they run.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cuda import Device, Graph, Stream
from ..errors import EngineError, GpuError, HartWarning, InputError
from .cache import CacheKey, read_cache, write_cache
from .log import Log

Shape = tuple[int, ...]
Places = Mapping[str, tuple[Shape, int]]
"""Shape and address of every tensor of a call."""

MOST_GRAPHS = 64
"""Per engine: more than the shapes of a few batch sizes; the one that was used longest ago goes first."""


@dataclass(frozen=True)
class Loader:
    """What all engines of a backend are loaded with: the GPU, the module, its Runtime and its log."""

    device: Device
    trt: Any
    runtime: Any
    log: Log


class Session:
    """An engine that is ready to run.

    Args:
        loader: what it is loaded with.
        name: for messages.
        data: the engine file.
        cache: where the runtime cache lies and what it is for; None where there is to be none (classic TensorRT has none).

    Attributes:
        scratch: bytes of scratch memory that a call needs.
        aliases: outputs that TensorRT writes into an input's memory, by the output's name.
        host: inputs whose values TensorRT reads in the host's memory.
    """

    def __init__(self, loader: Loader, name: str, data: Any, cache: tuple[Path, CacheKey] | None) -> None:
        self._device, self._log, self._name, self._cache = loader.device, loader.log, name, cache
        self._graphs = None if cache is not None else GraphCache()
        with self._device.active():
            self._engine: Any = loader.runtime.deserialize_cuda_engine(data)
            if self._engine is None:
                raise self._refusal("TensorRT does not load engine", "Build it again on this machine, or use another backend.")
            self._context, self._stored = self._open_context(loader.trt)
        self._describe(loader.trt)

    def _open_context(self, trt: Any) -> tuple[Any, Any]:
        """The context, and the runtime cache that it writes into, if it has one."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        stored = None if self._cache is None else self._open_cache(trt, config, *self._cache)
        context = self._engine.create_execution_context(config)
        if context is None:
            raise self._refusal("TensorRT makes no context for engine", "It may have run out of memory; use another backend.")
        return context, stored

    def _describe(self, trt: Any) -> None:
        engine = self._engine
        self.scratch = int(engine.device_memory_size_v2)
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.aliases = {name: source for name in self.outputs if (source := engine.get_aliased_input_tensor(name))}
        self.host = {name for name in self.inputs if engine.get_tensor_location(name) == trt.TensorLocation.HOST}
        if self.host:
            self._graphs = None  # a graph would keep the values that the host's memory had when it was captured

    def _refusal(self, what: str, remedy: str = "") -> EngineError:
        return EngineError(f"{what} {self._name}: {self._log.take()}.", remedy)

    def _open_cache(self, trt: Any, config: Any, path: Path, key: CacheKey) -> Any:
        """TensorRT-RTX: kernels specialised to shapes as they come, whole calls as CUDA graphs, and what was compiled before."""
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
        stored, found = config.create_runtime_cache(), read_cache(path, key)
        reason = found.reason
        if found.content is not None and not stored.deserialize(found.content):
            reason = f"TensorRT refuses {path}: {self._log.take()}"
        if reason:
            warnings.warn(f"kernels of engine {self._name} are compiled anew: {reason}.", HartWarning, stacklevel=2)
        config.set_runtime_cache(stored)
        self._loaded = None if reason else found.content
        return stored

    def output_shape(self, name: str) -> Shape:
        """Of the shapes that the last call set."""
        return tuple(self._context.get_tensor_shape(name))

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Shapes of the inputs of the calls that follow; EngineError for those that TensorRT refuses."""
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._refusal(f"TensorRT refuses shape {list(shape)} of {name} for engine")

    def run(self, places: Places, scratch: tuple[int, int], stream: Stream) -> None:
        """Enqueue one call whose shapes are set. scratch: address and bytes."""
        with self._device.active():
            for name, (_, address) in places.items():
                if not self._context.set_tensor_address(name, address):
                    raise self._refusal(f"TensorRT refuses the address of {name} for engine")
            self._context.set_device_memory(*scratch)
            if self._graphs is None:
                return self._enqueue(stream)
            key = (scratch, tuple(sorted((name, *place) for name, place in places.items())))
            self._graphs.run(key, stream, lambda: self._enqueue(stream))

    def _enqueue(self, stream: Stream) -> None:
        if not self._context.execute_async_v3(stream.address):
            raise self._refusal("TensorRT does not run engine", "Use another backend, or build the engines again.")

    def close(self) -> None:
        """Keep what was compiled, and let go of everything. Idempotent."""
        if self._engine is None:
            return
        with self._device.active():
            self._save()
            if self._graphs is not None:
                self._graphs.close()
            self._context = self._stored = None  # before the engine that they belong to
            self._engine = None

    def _save(self) -> None:
        if self._stored is None or self._cache is None:
            return
        path, key = self._cache
        content = bytes(memoryview(self._stored.serialize()))
        if content == self._loaded:
            return
        try:
            write_cache(path, key, content)
        except InputError as error:
            warnings.warn(f"compiled kernels of engine {self._name} are not kept: {error}", HartWarning, stacklevel=2)


class GraphCache:
    """CUDA graphs of calls that came twice: first as they are, then captured behind the call, from the third time on as a graph.

    A call before the capture is needed: after a change of shapes TensorRT prepares itself in the first one.
    """

    def __init__(self) -> None:
        self._graphs: OrderedDict[Any, Graph | None] = OrderedDict()

    def run(self, key: Any, stream: Stream, enqueue: Callable[[], None]) -> None:
        """key: everything that a graph of the call depends on, addresses included."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            return graph.launch(stream)
        enqueue()
        if key in self._graphs:
            self._graphs[key] = self._captured(stream, enqueue)
        else:
            self._graphs[key] = None
        self._graphs.move_to_end(key)
        while len(self._graphs) > MOST_GRAPHS:
            _, oldest = self._graphs.popitem(last=False)
            if oldest is not None:
                oldest.close()

    def _captured(self, stream: Stream, enqueue: Callable[[], None]) -> Graph | None:
        """None where the driver captures no such work: every call is then enqueued as it is."""
        try:
            return stream.capture(enqueue)
        except (EngineError, GpuError) as error:
            warnings.warn(f"calls are not captured as CUDA graphs: {error}", HartWarning, stacklevel=2)
            return None

    def close(self) -> None:
        while self._graphs:
            _, graph = self._graphs.popitem()
            if graph is not None:
                graph.close()
