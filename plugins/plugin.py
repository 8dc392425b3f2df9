"""The operators of `graph_ops.py` as TensorRT plugins in Python: `IPluginV3`, the same for TensorRT and TensorRT-RTX.

The TensorRT module is an argument: this file imports neither. No callback that computes anything lets an exception out,
because TensorRT loses it or what it asked for: every fault goes to `Faults`, whoever called TensorRT asks for them, and the
callback answers with something harmless. `enqueue` raises as well, so that TensorRT stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from .adapter import Adapter, Faults, Launcher
from .graph_op import DOMAIN, PLUGIN_VERSION, GraphOp

R = TypeVar("R")
INTERFACES = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime")


def register_plugins(trt: Any, ops: Iterable[GraphOp], launch: Launcher, faults: Faults) -> list[Any]:
    """Register a creator for every operator; returns them, and they must be kept alive for as long as TensorRT is used.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        launch: launches a kernel; called when an engine runs, and by classic TensorRT while it builds.
        faults: hears of what goes wrong.
    """
    registry, creators = trt.get_plugin_registry(), []
    plugin_class = _plugin_class(trt, launch, faults)
    creator_class = _creator_class(trt, plugin_class, faults)
    for op in ops:
        creator = creator_class(op)
        if not registry.register_creator(creator, DOMAIN):
            raise RuntimeError(f"TensorRT did not register the plugin {DOMAIN}::{op.name}; it may be registered already.")
        creators.append(creator)
    return creators


def deregister_plugins(trt: Any, creators: Iterable[Any]) -> None:
    """Take the creators of `register_plugins` out again."""
    registry = trt.get_plugin_registry()
    for creator in creators:
        registry.deregister_creator(creator)


def _guarded(harmless: Callable[..., Any]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorator: what the callback raises goes to `faults`, and it answers as `harmless` does."""

    def guard(callback: Callable[..., R]) -> Callable[..., R]:
        @wraps(callback)
        def safe(self: Any, *arguments: Any) -> R:
            try:
                return callback(self, *arguments)
            except BaseException as error:
                self.faults.add(f"{self.adapter.op.name}.{callback.__name__}", error)
                answer: R = harmless(self, *arguments)
                return answer

        return safe

    return guard


def _nothing(self: Any, *arguments: Any) -> None:
    return None


class Callbacks:
    """What TensorRT asks of one node's plugin; `_plugin_class` joins it with TensorRT's interfaces.

    Attributes:
        trt, launch, faults: as of `register_plugins`.
        adapter: knows the answers.
    """

    trt: Any
    launch: Launcher
    faults: Faults
    adapter: Adapter

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def clone(self) -> Any:
        """Not guarded, for there is no harmless answer: TensorRT crashes without a new plugin. Only attributes are set."""
        return type(self)(self.adapter)  # type: ignore[call-arg]

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    @_guarded(lambda self, types: list(types)[:1] * self.adapter.op.outputs)
    def get_output_data_types(self, types: Any) -> Any:
        return [types[0]] * self.adapter.op.outputs

    @_guarded(lambda self, inputs, *_: [inputs[0]] * self.adapter.op.outputs)
    def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
        given = [tuple(shape[k] for k in range(len(shape))) for shape in inputs]
        return [_expressions(self.trt, shape, builder) for shape in self.adapter.output_shapes(given)]

    @_guarded(lambda *_: False)
    def supports_format_combination(self, position: int, tensors: Any, inputs: int) -> bool:
        return self.adapter.supports(position, [tensor.desc for tensor in tensors])

    @_guarded(lambda *_: 0)
    def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
        return self.adapter.scratch_bytes(_Largest(inputs[0]))

    @_guarded(lambda self: self.trt.PluginFieldCollection([]))
    def get_fields_to_serialize(self) -> Any:
        return self.trt.PluginFieldCollection(_fields(self.trt, self.adapter))

    @_guarded(_nothing)
    def configure_plugin(self, inputs: Any, outputs: Any) -> None:
        """Nothing depends on the shapes before the launch."""

    @_guarded(_nothing)
    def on_shape_change(self, inputs: Any, outputs: Any) -> None:
        """Shapes come with every launch."""

    @_guarded(lambda self: [])
    def get_valid_tactics(self) -> Any:
        return []

    @_guarded(_nothing)
    def set_tactic(self, tactic: int) -> None:
        """There is one way to launch."""

    def enqueue(self, inputs: Any, outputs: Any, addresses: Any, results: Any, scratch: int, stream: int) -> None:
        try:
            for item in self.adapter.launches(inputs, outputs, addresses, results, scratch):
                self.launch(item, stream)
        except BaseException as error:
            self.faults.add(f"{self.adapter.op.name}.enqueue", error)
            raise


def set_up(plugin: Any, adapter: Adapter) -> None:
    """What a plugin says of itself."""
    plugin.adapter, plugin.num_outputs = adapter, adapter.op.outputs
    plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace = adapter.op.name, PLUGIN_VERSION, DOMAIN


def _plugin_class(trt: Any, launch: Launcher, faults: Faults) -> Any:
    interfaces = tuple(getattr(trt, name) for name in INTERFACES)

    def __init__(self: Any, adapter: Adapter) -> None:
        for interface in interfaces:
            interface.__init__(self)
        set_up(self, adapter)

    members = {"__init__": __init__, "trt": trt, "launch": staticmethod(launch), "faults": faults}
    return type("Plugin", (Callbacks, *interfaces), members)


def _creator_class(trt: Any, plugin_class: Any, faults: Faults) -> Any:
    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes plugins of one operator."""

        def __init__(self, op: GraphOp) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.op = op
            self.name, self.plugin_version, self.plugin_namespace = op.name, PLUGIN_VERSION, DOMAIN
            empty = np.array([])
            fields = [trt.PluginField(name, empty, _field_type(trt, kind)) for name, kind in op.attributes.items()]
            self.field_names = trt.PluginFieldCollection(fields)

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            """None, with the fault noted, for fields that do not fit."""
            try:
                return plugin_class(Adapter.of(self.op, fields))
            except BaseException as error:
                faults.add(f"{self.op.name}.create_plugin", error)
                return None

    return Creator


def _field_type(trt: Any, kind: type[float] | type[int]) -> Any:
    return trt.PluginFieldType.FLOAT32 if kind is float else trt.PluginFieldType.INT32


def _fields(trt: Any, adapter: Adapter) -> list[Any]:
    kinds = {float: np.float32, int: np.int32}
    return [
        trt.PluginField(name, np.array([adapter.attributes[name]], kinds[kind]), _field_type(trt, kind))
        for name, kind in adapter.op.attributes.items()
    ]


def _expressions(trt: Any, shape: tuple[Any, ...], builder: Any) -> Any:
    """A shape in which numbers have become constants."""
    made = trt.DimsExprs(len(shape))
    for k, size in enumerate(shape):
        made[k] = builder.constant(size) if isinstance(size, int) else size
    return made


class _Largest:
    """The description of a tensor at the upper end of its profile."""

    def __init__(self, tensor: Any) -> None:
        self.dims, self.type, self.format = tensor.max, tensor.desc.type, tensor.desc.format
