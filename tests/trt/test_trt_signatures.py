"""Everything that hart-edge uses of TensorRT's modules exists in both: the installed TensorRT-RTX, and what was recorded of classic's."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorrt_double import CLASSIC, Strict, rtx_table
from trt_signatures import CLASSIC_ENUMERATIONS, ENUMERATIONS, FUNCTIONS, RTX_ENUMERATIONS, RTX_USED, USED, accepts

from hart_edge.export.build import builder, messages, network
from hart_edge.export.build import plugins as build_plugins
from hart_edge.plugins import ahead_plugin, plugin
from hart_edge.runtime.trt import backend, log, session

RTX = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'hart-edge[rtx]'")
BOTH = [("tensorrt-rtx", rtx_table(), RTX_ENUMERATIONS), ("tensorrt", CLASSIC, CLASSIC_ENUMERATIONS)]
USERS = (builder, messages, network, build_plugins, plugin, backend, log, session)


@pytest.mark.parametrize(("name", "table", "more"), BOTH, ids=lambda value: value if isinstance(value, str) else "")
def test_every_method_has_a_signature_and_every_member_exists(name: str, table: dict[str, Any], more: dict[str, tuple[str, ...]]) -> None:
    for kind, members in USED.items():
        for member in members:
            assert table[kind][member] != [], f"{name}: {kind}.{member} has no signature"
    for kind in (*ENUMERATIONS, *more):
        assert set(ENUMERATIONS.get(kind, ()) + more.get(kind, ())) <= set(table[kind])


def test_functions_exist() -> None:
    assert all(callable(getattr(RTX, name)) for name in FUNCTIONS)


def test_the_record_is_of_a_release_that_the_extra_asks_for() -> None:
    assert int(CLASSIC["version"].partition(".")[0]) >= 11


def test_plugin_callbacks_have_the_parameters_that_both_packages_pass() -> None:
    for table in (rtx_table(), CLASSIC):
        for kind in ("IPluginV3", "IPluginV3OneBuild", "IPluginV3OneRuntime"):
            for member, overloads in table[kind].items():
                if overloads is None or member not in vars(plugin.Callbacks):
                    continue
                callback = inspect.unwrap(vars(plugin.Callbacks)[member])
                taken = len(inspect.signature(callback).parameters) - 1
                assert [len(overload["names"]) for overload in overloads] == [taken], f"{kind}.{member}"


def test_what_is_named_of_the_modules_is_in_the_table() -> None:
    """Attributes of `trt` and `self._trt` in the source: none that the tables do not know."""
    known = {*USED, *RTX_USED, *ENUMERATIONS, *RTX_ENUMERATIONS, *FUNCTIONS, "int32", "__version__", "PluginFieldCollection"}
    for module in USERS:
        tree = ast.parse(Path(inspect.getsourcefile(module) or "").read_text(encoding="utf-8"))
        named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_module(node.value)}
        assert named <= known, module.__name__


def _is_module(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "trt") or (isinstance(node, ast.Attribute) and node.attr in ("trt", "_trt"))


def test_the_ahead_of_time_form_uses_what_was_recorded() -> None:
    tree = ast.parse(Path(inspect.getsourcefile(ahead_plugin) or "").read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    named = {node.attr for node in attributes if node.value.id == "trtp"}
    assert named <= set(CLASSIC["plugin"])
    for keyword in ("grid_x", "grid_y", "block_x"):
        assert keyword in CLASSIC["plugin"]["KernelLaunchParams"]


def test_a_double_takes_no_call_that_the_module_would_not() -> None:
    owner: Any = SimpleNamespace(table={"Thing": {"go": [{"names": ["a", "b"], "needed": 1}], "size": None}}, calls=[])
    thing = Strict(owner, "Thing", {"go": lambda a, b=2: a + b}, size=3)
    assert (thing.go(1), thing.go(1, b=5), thing.size) == (3, 6, 3)
    wrong = (lambda: thing.go(), lambda: thing.go(1, 2, 3), lambda: thing.go(1, c=2), lambda: thing.stop(), lambda: setattr(thing, "go", 1))
    for call in wrong:
        with pytest.raises(AssertionError):
            call()
    assert [name for name, _ in owner.calls] == ["Thing.go", "Thing.go"]
    assert accepts([{"names": [], "needed": 0}, {"names": ["x"], "needed": 1}], (1,), {})
