"""ONNX Runtime engine on the CPU: every tensor is bound by address, so nothing is copied in or out."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import onnxruntime as ort

from .engine import Array, TensorInfo, Tensors, check_call
from .errors import EngineError

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


class OrtEngine:
    """One ONNX file in one session. Implements `Engine`.

    Args:
        path: the `.onnx` file; its weights are read from the file that it points into.
        name: what errors call the engine.
        threads: threads per operator; 0 takes one per core.
    """

    def __init__(self, path: Path, name: str, threads: int = 0) -> None:
        self.name = name
        self._session: ort.InferenceSession | None = _open(path, name, threads)
        self.inputs = {node.name: _info(name, node) for node in self._session.get_inputs()}
        self.outputs = {node.name: _info(name, node) for node in self._session.get_outputs()}

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """See `Engine.run`."""
        if self._session is None:
            raise EngineError(f"engine {self.name} is closed.", "Load the bundle again.")
        check_call(self, inputs, outputs)
        binding = self._session.io_binding()
        for tensor, array in inputs.items():
            binding.bind_input(tensor, "cpu", 0, array.dtype, array.shape, _address(array))
        for tensor, array in outputs.items():
            binding.bind_output(tensor, "cpu", 0, array.dtype, array.shape, _address(array))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises its own unrelated exception types
            raise EngineError(f"engine {self.name} failed: {_first_line(error)}", "Run `hart-edge inspect` on the bundle.") from error

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> OrtEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open(path: Path, name: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Every engine has threads of its own. Spinning after work, they would take the cores from the next engine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors come back as exceptions
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unrelated exception types
        raise EngineError(
            f"engine {name} does not load from {path}: {_first_line(error)}",
            "The file is damaged or needs a newer onnxruntime; export the bundle again or upgrade onnxruntime.",
        ) from error


def _info(engine: str, node: ort.NodeArg) -> TensorInfo:
    if node.type not in _DTYPES:
        raise EngineError(f"engine {engine}: {node.name} has type {node.type}; known are {sorted(_DTYPES)}.")
    return TensorInfo(node.name, np.dtype(_DTYPES[node.type]), tuple(node.shape))


def _address(array: Array) -> int:
    return int(array.ctypes.data)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
