"""ONNX Runtime engine: every tensor is bound by address, so that nothing is copied which lies where it is needed.

This file runs on the CPU; `ort_cuda.py` says what differs on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort

from .bundle import folded_engines
from .engine import DeviceTensor, Engine, Tensor, TensorInfo, Tensors, check_call
from .errors import EngineError, HartError
from .memory import HOST, Memory

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}

UNWANTED = ["QDQPropagationTransformer"]
"""Optimisers that are left out: this one moves a QuantizeLinear past a Reshape, and of an unsigned one made of it later, ONNX Runtime
1.32 then says itself that its type is wrong. Otherwise it only adds such nodes, to FP8's transformer."""


class OrtEngine:
    """One ONNX file in one session. Implements `Engine`.

    Args:
        path: the `.onnx` file; its weights are read from the file that it points into.
        name: what errors call the engine.
        threads: threads per operator; 0 takes one per core.
        fold: of `session_options`.
    """

    def __init__(self, path: Path, name: str, threads: int = 0, fold: bool = False) -> None:
        self.name, self._fold = name, fold
        self._session: ort.InferenceSession | None = self._open(path, threads)
        self.inputs = {node.name: _info(name, node) for node in self._session.get_inputs()}
        self.outputs = {node.name: _info(name, node) for node in self._session.get_outputs()}

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """See `Engine.run`."""
        if self._session is None:
            raise EngineError(f"engine {self.name} is closed.", "Load the bundle again.")
        check_call(self, inputs, outputs)
        self._compute(self._session, inputs, outputs)

    def _compute(self, session: ort.InferenceSession, inputs: Tensors, outputs: Tensors) -> None:
        for name, tensor in {**inputs, **outputs}.items():
            if isinstance(tensor, DeviceTensor):
                raise EngineError(f"engine {self.name} runs on the CPU; {name} lies on a GPU.", "Download it first.")
        self._call(session, inputs, outputs)

    def _call(self, session: ort.InferenceSession, inputs: Tensors, outputs: Tensors, options: ort.RunOptions | None = None) -> None:
        """One checked call; ONNX Runtime copies what lies elsewhere than where it is needed."""
        self._run_bound(session, self._bind(session, inputs, outputs), options)

    def _bind(self, session: ort.InferenceSession, inputs: Tensors, outputs: Tensors) -> ort.IOBinding:
        binding = session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *_place(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, *_place(tensor))
        return binding

    def _run_bound(self, session: ort.InferenceSession, binding: ort.IOBinding, options: ort.RunOptions | None) -> None:
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime raises its own unrelated exception types
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> HartError:
        return EngineError(f"engine {self.name} failed: {first_line(error)}", "Run `hart-edge inspect` on the bundle.")

    def _open(self, path: Path, threads: int) -> ort.InferenceSession:
        options = session_options(threads, self._fold)
        # Every engine has threads of its own. Spinning after work, they would take the cores from the next engine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return open_session(path, self.name, options, ["CPUExecutionProvider"])

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> OrtEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class OrtCpu:
    """Implements `Backend` on the CPU.

    Args:
        threads: threads per operator; 0 takes one per core.
    """

    name = "cpu"
    memory: Memory = HOST

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads

    def open_engine(self, path: Path, name: str) -> Engine:
        return OrtEngine(path, name, self._threads, name in folded_engines(path.parent))

    def close(self) -> None:
        """Nothing is held."""


def session_options(threads: int, fold: bool = False) -> ort.SessionOptions:
    """Options of every session.

    Args:
        threads: per operator; 0 takes one per core.
        fold: dequantise stored weights once, when they are loaded, in place of at every call.
    """
    options = ort.SessionOptions()
    if fold:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors come back as exceptions
    return options


def open_session(path: Path, name: str, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    """Load a graph; EngineError says what ONNX Runtime could not do with it."""
    try:
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0, disabled_optimizers=UNWANTED)
    except Exception as error:  # ONNX Runtime raises its own unrelated exception types
        raise EngineError(
            f"engine {name} does not load from {path}: {first_line(error)}",
            "The file is damaged or needs a newer onnxruntime; export the bundle again or upgrade onnxruntime.",
        ) from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _info(engine: str, node: ort.NodeArg) -> TensorInfo:
    if node.type not in _DTYPES:
        raise EngineError(f"engine {engine}: {node.name} has type {node.type}; known are {sorted(_DTYPES)}.")
    return TensorInfo(node.name, np.dtype(_DTYPES[node.type]), tuple(node.shape))


def _place(tensor: Tensor) -> tuple[str, int, np.dtype[Any], tuple[int, ...], int]:
    """Device, its number, type, shape and address, as ONNX Runtime binds them."""
    if isinstance(tensor, DeviceTensor):
        return "cuda", 0, tensor.dtype, tensor.shape, tensor.address
    return "cpu", 0, tensor.dtype, tensor.shape, int(tensor.ctypes.data)
