"""Which operators become TensorRT plugins, and in which form: the choice, their registration, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hart_edge.plugins.adapter import Faults
from hart_edge.plugins.ahead_plugin import register_ahead
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.plugins.plugin import register_plugins
from hart_edge.runtime.errors import EngineError, InputError
from hart_edge.runtime.trt.launcher import DeviceLauncher, PtxCompiler

from .backends import BuildBackend

NONE, ALL = "none", "all"
PYTHON, AHEAD = "python", "ahead"
"""Forms: a Python plugin, which whoever runs the engine registers, or a kernel that the engine carries."""


@dataclass(frozen=True)
class Plugins:
    """The plugins of one build process.

    Attributes:
        forms: by the operator's name.
        keep: objects that must live as long as TensorRT is used.
        faults: what went wrong in their callbacks.
    """

    forms: dict[str, str] = field(default_factory=dict)
    keep: tuple[Any, ...] = ()
    faults: Faults = field(default_factory=Faults)


def check_plugins(text: str) -> tuple[str, ...]:
    """ "none", "all" or names separated by commas, as names in the order of the table; InputError for an unknown one."""
    wanted = {NONE: [], ALL: [*GRAPH_OPS]}.get(text, text.split(","))
    if unknown := sorted(set(wanted) - set(GRAPH_OPS)):
        raise InputError(f"plugin {unknown[0]!r} is unknown; expected {NONE}, {ALL} or a list of {', '.join(GRAPH_OPS)}.")
    return tuple(name for name in GRAPH_OPS if name in wanted)


def register(trt: Any, backend: BuildBackend, names: Iterable[str]) -> Plugins:
    """Register the named operators with TensorRT: ahead of time where both the backend and the operator can, else in Python."""
    ops, faults = [GRAPH_OPS[name] for name in names], Faults()
    ahead = [op for op in ops if backend.ahead and op.ahead is not None]
    python = [op for op in ops if op not in ahead]
    if ahead:
        register_ahead(backend.package.load_plugins(), ahead, PtxCompiler(), faults)
    creators = register_plugins(trt, python, DeviceLauncher(), faults) if python else []
    forms = {op.name: AHEAD if op in ahead else PYTHON for op in ops}
    return Plugins(forms, tuple(creators), faults)


def check_layers(trt: Any, layers: Iterable[Any], fused: dict[str, int], plugins: Plugins) -> dict[str, int]:
    """How many nodes of every operator became plugins; EngineError where a node fell back to its body."""
    # The parser names a plugin's layer after its node, NAME_NUMBER (fuse.py).
    found = Counter(layer.name.rpartition("_")[0] for layer in layers if layer.type == trt.LayerType.PLUGIN_V3)
    lost = {name: count - found[name] for name, count in fused.items() if name in plugins.forms and found[name] != count}
    if lost:
        raise EngineError(
            f"nodes that were to be plugins are computed by their function bodies: {lost}.", "Build without them: --plugins none."
        )
    return {name: count for name, count in sorted(found.items()) if name in plugins.forms}
