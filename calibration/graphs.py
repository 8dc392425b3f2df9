"""A bundle's graphs in memory, and engines that run changed ones without writing them. Knows nothing of quantisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, helper

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.engine import Array, Engine, Tensors
from hart_edge.runtime.errors import EngineError, HartWarning
from hart_edge.runtime.ort import UNWANTED, OrtCpu, OrtEngine, first_line, session_options
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.spec import REEXPORT

Watch = Callable[[Tensors, dict[str, Array]], None]
"""Told of every call: what went in, and what came out at the watched tensors."""


def load_graph(bundle: Bundle, engine: str) -> ModelProto:
    """An engine's graph; its weights stay in the bundle's weights file."""
    path = bundle.engine(engine)
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise EngineError(f"{path} is no ONNX file: {error}.", REEXPORT) from error


def element_type(model: ModelProto, tensor: str) -> int:
    """ONNX number of a tensor's type; the exporter notes it for every tensor."""
    graph = model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.name == tensor:
            return int(value.type.tensor_type.elem_type)
    raise EngineError(f"the graph does not say the type of tensor {tensor}.", REEXPORT)


class MemoryEngine(OrtEngine):
    """An engine whose graph lies in memory and whose weights lie in a bundle. Implements `Engine`.

    Args:
        model: the graph; initializers that are not external hold their own data.
        folder: of the weights file.
        name: what errors call the engine.
        watched: tensors of the graph that `watch` is given after every call.
        threads: per operator; 0 takes one per core.
    """

    def __init__(
        self, model: ModelProto, folder: Path, name: str, watched: Sequence[str] = (), watch: Watch | None = None, threads: int = 0
    ) -> None:
        self._data, self._watched, self._watch = _with_outputs(model, watched), tuple(watched), watch
        super().__init__(folder, name, threads)
        self._data = b""
        self.outputs = {key: value for key, value in self.outputs.items() if key not in self._watched}

    def _open(self, path: Path, threads: int) -> ort.InferenceSession:
        options = session_options(threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.absolute()))
        try:
            providers = ["CPUExecutionProvider"]
            return ort.InferenceSession(self._data, options, providers=providers, enable_fallback=0, disabled_optimizers=UNWANTED)
        except Exception as error:  # ONNX Runtime raises its own unrelated exception types
            raise EngineError(f"the changed graph of engine {self.name} does not load: {first_line(error)}", REEXPORT) from error

    def _call(self, session: ort.InferenceSession, inputs: Tensors, outputs: Tensors, options: ort.RunOptions | None = None) -> None:
        if self._watch is None:
            return super()._call(session, inputs, outputs, options)
        binding = self._bind(session, inputs, outputs)
        for name in self._watched:
            binding.bind_output(name, "cpu")
        self._run_bound(session, binding, options)
        values = binding.get_outputs()[len(outputs) :]
        self._watch(inputs, {name: value.numpy() for name, value in zip(self._watched, values, strict=True)})
        return None


def _with_outputs(model: ModelProto, names: Iterable[str]) -> bytes:
    """The graph with more of its tensors as outputs."""
    changed = ModelProto()
    changed.CopyFrom(model)
    changed.graph.output.extend(helper.make_tensor_value_info(name, element_type(model, name), None) for name in names)
    return bytes(changed.SerializeToString())


@contextmanager
def said_before() -> Iterator[None]:
    """A block whose warnings were given already: calibration runs the same prompts many times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HartWarning)
        yield


def open_with(bundle: Bundle, changed: dict[str, Engine]) -> Pipeline:
    """A pipeline on the CPU with some engines in place of the bundle's own; it closes all of them."""
    backend = OrtCpu()
    engines = {name: changed.get(name) or backend.open_engine(bundle.engine(name), name) for name in bundle.manifest.engines}
    return Pipeline(bundle, backend, engines)
