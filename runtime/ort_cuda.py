"""ONNX Runtime on an NVIDIA GPU: tensors stay in its memory between the engines, which work on one shared stream."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from .bundle import Bundle
from .cuda import Device
from .device_memory import DeviceMemory
from .device_sampling import sampled_on
from .engine import Engine, Tensors
from .errors import EngineError, GpuError, GpuLostError, GpuMemoryError, HartError
from .ort import OrtEngine, first_line, open_session, session_options
from .ort_cuda_setup import PROVIDER, check_driver, check_provider, load_libraries
from .ort_graphs import Slots
from .scale_loop import ScaleLoop

CUDA_GRAPHS = frozenset({"text_encoder", "context", "transition", "residual_condition", "residual_step", "decoder"})
"""Engines whose calls are captured, one CUDA graph per shape: shapes repeat from picture to picture, and those of
residual_step within one. The transformer is not among them: its attention reads the valid prefix of the cache, whose
length only the host knows, so that calls of one shape differ inside."""

_OUT_OF_MEMORY = ("out of memory", "Failed to allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "resource allocation failed")
_LOST = ("illegal memory access", "unspecified launch failure", "misaligned address")


class OrtCuda:
    """Implements `Backend` and `ResidentBackend`: the sessions of one GPU with the memory and the stream that they share.

    Raises MissingPackageError for what is not installed, GpuError for a GPU or a driver that cannot work.
    """

    name = "ort-cuda"

    def __init__(self) -> None:
        check_provider()
        self._device = Device()
        try:
            check_driver(self._device.info)
            load_libraries()
            self.memory = DeviceMemory(self._device, self._device.stream())
        except BaseException:
            self._device.close()
            raise

    def open_engine(self, path: Path, name: str) -> Engine:
        """The engine of a bundle, whose folder holds `path`."""
        manifest = Bundle(path.parent, check_files=False).manifest
        half, fold = manifest.floats == "fp16", manifest.quantization is not None
        return OrtCudaEngine(path, name, self.memory, name in CUDA_GRAPHS, tf32=half and name == "decoder", fold=fold)

    def make_loop(self, loop: ScaleLoop) -> ScaleLoop:
        """A loop that samples on the GPU; `loop` itself, with HartWarning, where the kernel for that cannot be made."""
        return sampled_on(self._device, self.memory, loop)

    def close(self) -> None:
        """Free all memory; the engines must be closed before. Idempotent."""
        self._device.close()


class OrtCudaEngine(OrtEngine):
    """One ONNX file in one session on the GPU. Works on device tensors where they are; arrays are copied there and back.

    Args:
        path, name: as of `OrtEngine`.
        memory: of the backend.
        graphs: capture the calls; an engine of which ONNX Runtime refuses that runs without, see the attribute `graphs`.
        tf32: of `provider_options`.
        fold: of `session_options`; the provider multiplies no stored weight as it is.
    """

    def __init__(self, path: Path, name: str, memory: DeviceMemory, graphs: bool, tf32: bool = False, fold: bool = False) -> None:
        self._memory, self._tf32 = memory, tf32
        self._slots = Slots(memory) if graphs else None
        super().__init__(path, name, fold=fold)

    @property
    def graphs(self) -> bool:
        """Whether calls are captured."""
        return self._slots is not None

    def close(self) -> None:
        super().close()
        self._slots = None

    def _open(self, path: Path, threads: int) -> ort.InferenceSession:
        if self._slots is not None:
            try:
                return self._session_on_gpu(path, graphs=True)
            except EngineError:  # nodes on the CPU cannot be captured; a file that does not load at all fails again below
                self._slots = None
        return self._session_on_gpu(path, graphs=False)

    def _session_on_gpu(self, path: Path, graphs: bool) -> ort.InferenceSession:
        providers = [(PROVIDER, provider_options(self._memory.stream.address, graphs, self._tf32)), "CPUExecutionProvider"]
        try:
            session = open_session(path, self.name, session_options(threads=1, fold=self._fold), providers)
        except EngineError as error:
            raise _fault_of_gpu(error.message, str(error)) or error from error.__cause__
        if PROVIDER not in session.get_providers():
            raise GpuError(
                f"ONNX Runtime could not start its CUDA provider for engine {self.name}.",
                "Check that the CUDA libraries fit it (pip install -U 'onnxruntime-gpu[cuda,cudnn]'), or use the CPU.",
            )
        return session

    def _compute(self, session: ort.InferenceSession, inputs: Tensors, outputs: Tensors) -> None:
        try:
            self._once(session, inputs, outputs)
        except GpuMemoryError:
            if not self._memory.trim():
                raise
            self._once(session, inputs, outputs)

    def _once(self, session: ort.InferenceSession, inputs: Tensors, outputs: Tensors) -> None:
        if self._slots is None:
            return self._call(session, inputs, outputs)
        slot = self._slots.of(inputs, outputs)
        slot.fill(inputs)
        self._call(session, slot.inputs, slot.outputs, slot.options)
        slot.hand_out(outputs)

    def _failure(self, error: Exception) -> HartError:
        return _fault_of_gpu(f"engine {self.name} failed: {first_line(error)}", str(error)) or super()._failure(error)


def _fault_of_gpu(message: str, text: str) -> HartError | None:
    """The error for what ONNX Runtime says in `text`; None if the GPU is not what is wrong."""
    if any(sign in text for sign in _LOST):
        remedy = "This process can go on without it: close the pipeline and use the CPU. To use the GPU again, restart the process."
        return GpuLostError(f"{message} The GPU was lost.", remedy)
    if any(sign in text for sign in _OUT_OF_MEMORY):
        remedy = "Close other programs that use the GPU, or use a smaller batch, a smaller model or the CPU."
        return GpuMemoryError(f"{message} The GPU has too little free memory.", remedy)
    return None


def provider_options(stream: int, graphs: bool, tf32: bool) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider.

    Memory grows by what is asked for, not by powers of two; convolutions are chosen by cuDNN's heuristics, the same ones
    in every process.

    Args:
        stream: address.
        graphs: capture CUDA graphs.
        tf32: fp32 products may be of TF32; without it tokens are those of the CPU. Where convolutions are fp16 it must
            be on: off, ONNX Runtime denies tensor cores to them too, finds no plan, logs an error and plans again.
    """
    return {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "use_tf32": "1" if tf32 else "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "1" if graphs else "0",
    }
