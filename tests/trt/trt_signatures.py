"""What the methods of a TensorRT module take, read from its docstrings: doubles accept no call that the module would not."""

from __future__ import annotations

import inspect
import re
from typing import Any

Overload = dict[str, Any]
Table = dict[str, Any]
"""Class → method → overloads, attribute → null, enumeration → its members; see `table_of`."""

USED: dict[str, tuple[str, ...]] = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network", "max_threads"),
    "IBuilderConfig": ("add_optimization_profile",),
    "IOptimizationProfile": ("set_shape",),
    "INetworkDefinition": ("num_layers", "get_layer", "num_inputs", "get_input", "num_outputs", "get_output"),
    "ILayer": ("name", "type", "num_inputs", "get_input"),
    "OnnxParser": ("parse", "num_errors", "get_error"),
    "ParserError": ("node_name", "node", "desc"),
    "ILogger": ("__init__",),
    "Runtime": ("__init__", "deserialize_cuda_engine"),
    "ICudaEngine": (
        "create_runtime_config",
        "create_execution_context",
        "device_memory_size_v2",
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_location",
        "get_aliased_input_tensor",
    ),
    "IRuntimeConfig": ("set_execution_context_allocation_strategy",),
    "IExecutionContext": ("set_input_shape", "set_tensor_address", "set_device_memory", "execute_async_v3", "get_tensor_shape"),
    "IPluginRegistry": ("register_creator", "deregister_creator", "get_creator"),
    "IPluginCreatorV3One": ("__init__", "name", "plugin_namespace", "plugin_version", "field_names", "create_plugin"),
    "IPluginV3": ("__init__", "clone", "get_capability_interface"),
    "IPluginV3OneCore": ("__init__", "plugin_name", "plugin_version", "plugin_namespace"),
    "IPluginV3OneBuild": (
        "__init__",
        "num_outputs",
        "configure_plugin",
        "get_output_data_types",
        "get_output_shapes",
        "supports_format_combination",
        "get_workspace_size",
        "get_valid_tactics",
    ),
    "IPluginV3OneRuntime": ("__init__", "attach_to_context", "enqueue", "get_fields_to_serialize", "on_shape_change", "set_tactic"),
    "PluginField": ("__init__",),
    "PluginFieldCollection": ("__init__",),
    "DimsExprs": ("__init__",),
    "IExprBuilder": ("constant",),
    "PluginTensorDesc": ("dims", "type", "format"),
    "DynamicPluginTensorDesc": ("desc", "max"),
}
"""Everything of a module that hart-edge uses, for both packages."""

ENUMERATIONS: dict[str, tuple[str, ...]] = {
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "LayerType": ("PLUGIN_V3", "ATTENTION_INPUT", "KV_CACHE_UPDATE"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("HOST", "DEVICE"),
    "PluginFieldType": ("FLOAT32", "INT32"),
    "DataType": ("FLOAT", "HALF", "BF16", "INT64", "INT32", "INT8", "UINT8", "BOOL", "FP8"),
    "TensorFormat": ("LINEAR", "HWC", "HWC8"),
}

RTX_USED: dict[str, tuple[str, ...]] = {
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "IRuntimeConfig": ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy", "create_runtime_cache", "set_runtime_cache"),
    "IRuntimeCache": ("serialize", "deserialize"),
}
RTX_ENUMERATIONS: dict[str, tuple[str, ...]] = {
    "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE",),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY",),
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120"),
}
CLASSIC_ENUMERATIONS: dict[str, tuple[str, ...]] = {"NetworkDefinitionCreationFlag": ("PREFER_AOT_PYTHON_PLUGINS",)}
FUNCTIONS = ("get_plugin_registry",)

_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> ", re.MULTILINE)


def table_of(module: Any, used: dict[str, tuple[str, ...]], enumerations: dict[str, tuple[str, ...]]) -> Table:
    """The used part of a module; AttributeError names what it lacks."""
    table: Table = {}
    for name, members in used.items():
        table[name] = {member: overloads_of(getattr(module, name), member) for member in members}
    for name, members in enumerations.items():
        table[name] = sorted(member for member in members if hasattr(getattr(module, name), member))
    return table


def overloads_of(owner: Any, member: str) -> list[Overload] | None:
    """Parameter names without self, and how many of them must be given, per overload; None for an attribute."""
    value = inspect.getattr_static(owner, member)
    if isinstance(value, property):
        return None
    found = [_parameters(match[2]) for match in _SIGNATURE.finditer(getattr(owner, member).__doc__ or "") if match[1] == member]
    return [overload for overload in found if "*args" not in overload["names"]]


def _parameters(text: str) -> Overload:
    parts = [part.strip() for part in _split(text)]
    parts = parts[1:] if parts and parts[0].startswith("self") else parts
    names = [part.partition(":")[0].partition("=")[0].strip() for part in parts]
    return {"names": names, "needed": sum("=" not in part for part in parts)}


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def accepts(overloads: list[Overload], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a call with these arguments fits one of the overloads by number and names."""
    for overload in overloads:
        names, given = overload["names"], len(arguments) + len(keywords)
        if overload["needed"] <= given <= len(names) and set(keywords) <= set(names[len(arguments) :]):
            return True
    return False
