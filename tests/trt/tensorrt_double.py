"""A TensorRT module whose engines run in ONNX Runtime on the host's memory: what hart-edge asks of TensorRT is recorded, and a
call that the real module would not take is an error.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from host_device import HostDevice
from trt_signatures import ENUMERATIONS, RTX_ENUMERATIONS, RTX_USED, USED, Table, accepts, table_of

from hart_edge.runtime.cuda import DeviceInfo
from hart_edge.runtime.ort import OrtEngine
from hart_edge.runtime.trt.backend import TrtBackend

CLASSIC = json.loads((Path(__file__).parent / "classic_signatures.json").read_text(encoding="utf-8"))
VERSION = "1.7.1.116"
Opener = Callable[..., TrtBackend]
"""Of the fixture `open_trt`: a double of the module, the backend's name, a device."""


def rtx_table() -> Table:
    """Of the installed package."""
    import tensorrt_rtx

    used = {name: USED.get(name, ()) + RTX_USED.get(name, ()) for name in (*USED, *RTX_USED)}
    return table_of(tensorrt_rtx, used, ENUMERATIONS | RTX_ENUMERATIONS)


class Strict:
    """Base of the doubles: methods are looked up in the table and recorded.

    Args:
        owner: the module.
        kind: name of the class.
        methods: what it does, by name; what is not named returns None.
        values: attributes.
    """

    def __init__(self, owner: TrtDouble, kind: str, methods: dict[str, Callable[..., Any]], **values: Any) -> None:
        object.__setattr__(self, "_facts", (owner, kind, methods))
        for name, value in values.items():
            self._known(name)
            object.__setattr__(self, name, value)

    def _known(self, name: str) -> Any:
        owner, kind, _ = self._facts
        if name not in owner.table[kind]:
            raise AssertionError(f"{kind}.{name} is used, but is not in the table of what hart-edge uses, or the module lacks it")
        return owner.table[kind][name]

    def __getattr__(self, name: str) -> Any:
        owner, kind, methods = self._facts
        overloads = self._known(name)
        if overloads is None:
            raise AssertionError(f"{kind}.{name} is an attribute; the double has no value for it")

        def call(*arguments: Any, **keywords: Any) -> Any:
            assert accepts(overloads, arguments, keywords), f"{kind}.{name} does not take {arguments} {keywords}: {overloads}"
            owner.calls.append((f"{kind}.{name}", arguments))
            return methods[name](*arguments, **keywords) if name in methods else None

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        owner, kind, _ = self._facts
        assert self._known(name) is None, f"{kind}.{name} is a method"
        owner.calls.append((f"{kind}.{name}", (value,)))
        object.__setattr__(self, name, value)


class TrtDouble:
    """The module.

    Args:
        table: what it takes.
        graphs: the ONNX file that an engine's content stands for.
        host: names of inputs that it wants in the host's memory.

    Attributes:
        calls: (Class.method, arguments), in order. refused: methods that answer as TensorRT does when it fails.
        compiled: content of the runtime cache.
    """

    def __init__(self, table: Table, graphs: Callable[[bytes], Path], version: str = VERSION, host: tuple[str, ...] = ()) -> None:
        self.table, self.graphs, self.host, self.__version__ = table, graphs, host, version
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.refused: set[str] = set()
        self.compiled = b"compiled for the shapes so far"
        self.loaded: list[bytes] = []
        self.gpu: HostGpu | None = None
        for name, members in table.items():
            if isinstance(members, list):
                setattr(self, name, SimpleNamespace(**{member: f"{name}.{member}" for member in members}))
        self.ILogger = type("ILogger", (), {"__init__": lambda logger: None})

    def Runtime(self, logger: Any) -> Strict:  # as the module has it
        self.logger = logger
        return Strict(self, "Runtime", {"deserialize_cuda_engine": self._engine})

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _fails(self, name: str) -> bool:
        if name in self.refused:
            self.logger.log(SimpleNamespace(name="ERROR"), f"{name} was refused")
            return True
        return False

    def _engine(self, data: Any) -> Strict | None:
        if self._fails("deserialize_cuda_engine"):
            return None
        engine = OrtEngine(self.graphs(bytes(data)), "double", threads=1)
        names = [*engine.inputs, *engine.outputs]
        aliases = {name: name.replace("_next_", "_cache_") for name in engine.outputs if name[:6] in ("k_next", "v_next")}
        methods = {
            "create_runtime_config": self._config,
            "create_execution_context": lambda config: None if self._fails("create_execution_context") else self._context(engine),
            "get_tensor_name": lambda index: names[index],
            "get_tensor_mode": lambda name: self.TensorIOMode.INPUT if name in engine.inputs else "TensorIOMode.OUTPUT",
            "get_tensor_location": lambda name: self.TensorLocation.HOST if name in self.host else self.TensorLocation.DEVICE,
            "get_aliased_input_tensor": aliases.get,
        }
        return Strict(self, "ICudaEngine", methods, num_io_tensors=len(names), device_memory_size_v2=1000 + len(names))

    def _config(self) -> Strict:
        def read(content: bytes) -> bool:
            self.loaded.append(bytes(content))
            return not self._fails("deserialize")

        def cache() -> Strict:
            return Strict(self, "IRuntimeCache", {"serialize": lambda: self.compiled, "deserialize": read})

        return Strict(self, "IRuntimeConfig", {"create_runtime_cache": cache, "set_runtime_cache": lambda cache: True})

    def _context(self, engine: OrtEngine) -> Strict:
        shapes: dict[str, tuple[int, ...]] = {}
        places: dict[str, int] = {}

        def set_shape(name: str, shape: tuple[int, ...]) -> bool:
            shapes[name] = tuple(shape)
            return not self._fails("set_input_shape")

        def set_address(name: str, address: int) -> bool:
            places[name] = address
            return not self._fails("set_tensor_address")

        methods = {
            "set_input_shape": set_shape,
            "set_tensor_address": set_address,
            "get_tensor_shape": lambda name: _shape_of(engine, name, shapes),
            "execute_async_v3": lambda stream: not self._fails("execute_async_v3") and self._execute(engine, dict(shapes), dict(places)),
        }
        return Strict(self, "IExecutionContext", methods)

    def _execute(self, engine: OrtEngine, shapes: dict[str, tuple[int, ...]], places: dict[str, int]) -> bool:
        """Now, or in every launch of the graph that is being captured, with the shapes and addresses of this moment."""
        if self.gpu is not None and self.gpu.recording is not None:
            self.gpu.recording.append(lambda: _compute(engine, shapes, places))
        else:
            _compute(engine, shapes, places)
        return True


def _shape_of(engine: OrtEngine, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Of an output: its symbols have the values that the inputs' shapes give them."""
    symbols: dict[str, int] = {}
    for key, shape in shapes.items():
        for symbol, size in zip(engine.inputs[key].shape, shape, strict=True):
            if isinstance(symbol, str):
                factor, _, base = symbol.rpartition("*")
                symbols[base] = size // int(factor or 1)
    sizes = (engine.inputs | engine.outputs)[name].shape
    return tuple(size if isinstance(size, int) else _number(size, symbols) for size in sizes)


def _number(dimension: str, symbols: dict[str, int]) -> int:
    """Of "B", "2*B" or "q**2"."""
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+?)(?:\*\*(\d))?", dimension)
    assert match is not None, dimension
    return int(match[1] or 1) * symbols[match[2]] ** int(match[3] or 1)


def _compute(engine: OrtEngine, shapes: dict[str, tuple[int, ...]], places: dict[str, int]) -> None:
    inputs = {name: _at(places[name], shapes[name], info.dtype) for name, info in engine.inputs.items()}
    outputs = {name: _at(places[name], _shape_of(engine, name, shapes), info.dtype) for name, info in engine.outputs.items()}
    engine.run(inputs, outputs)


def _at(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype).reshape(shape)


class HostGpu(HostDevice):
    """A device of the host's memory with facts about a card, a stream that captures, and an end."""

    def __init__(self, capability: int = 86, name: str = "RTX double", driver: int = 13020) -> None:
        super().__init__()
        self.info = DeviceInfo(0, name, capability, 1 << 33, 100_000, driver)
        self.closed, self.captured, self.launched = False, 0, 0
        self.refuse_capture: Exception | None = None
        self.recording: list[Callable[[], None]] | None = None

    def stream(self) -> Any:
        return SimpleNamespace(handle=0, address=0x57, synchronize=lambda: None, capture=self._capture)

    def _capture(self, record: Callable[[], None]) -> Any:
        if self.refuse_capture is not None:
            raise self.refuse_capture
        self.captured, self.recording = self.captured + 1, []
        record()
        steps, self.recording = self.recording, None
        return SimpleNamespace(launch=lambda stream: self._launch(steps), close=lambda: None)

    def _launch(self, steps: list[Callable[[], None]]) -> None:
        self.launched += 1
        for step in steps:
            step()

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        self.closed = True
