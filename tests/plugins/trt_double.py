"""As much of a TensorRT module as `plugins/plugin.py` derives from: for machines that have none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Base:
    """An interface class."""


class Registry:
    """Keeps creators as TensorRT does, by name and namespace."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        key = (creator.name, namespace)
        fresh = key not in self.creators
        self.creators.setdefault(key, creator)
        return fresh

    def deregister_creator(self, creator: Any) -> bool:
        return self.creators.pop((creator.name, creator.plugin_namespace), None) is not None


def module() -> Any:
    """The double; `registry` is its registry."""
    registry = Registry()
    interfaces = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    return SimpleNamespace(
        **{name: type(name, (Base,), {}) for name in interfaces},
        PluginField=lambda name, data, kind: SimpleNamespace(name=name, data=data, type=kind),
        PluginFieldType=SimpleNamespace(FLOAT32="FLOAT32", INT32="INT32"),
        PluginFieldCollection=list,
        get_plugin_registry=lambda: registry,
        registry=registry,
    )
