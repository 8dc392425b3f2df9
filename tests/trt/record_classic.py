"""Records what hart-edge uses of classic TensorRT's Python bindings: `python tests/trt/record_classic.py`, when it uses more or for a
newer release.

The package `tensorrt` cannot be installed everywhere, its bindings (`tensorrt-cu13-bindings`) can; they load beside libraries that
export a few empty functions, which are compiled here. Needs pip, a package index and a C compiler.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trt_signatures import CLASSIC_ENUMERATIONS, ENUMERATIONS, USED, table_of

TARGET = Path(__file__).parent / "classic_signatures.json"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
EXPORTS = """createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParserRefitter_INTERNAL
createNvOnnxParser_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins""".split()
AHEAD = ("register", "aot_impl", "from_shape_expr", "KernelLaunchParams", "SymIntExprs", "SymInt32", "SymExprs", "TensorDesc")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        module = load(folder)
        enumerations = {name: members + CLASSIC_ENUMERATIONS.get(name, ()) for name, members in ENUMERATIONS.items()}
        table = {"version": module.__version__, **table_of(module, USED, enumerations), "plugin": ahead(module, folder)}
        TARGET.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        print(f"{TARGET}: TensorRT {module.__version__}")


def load(folder: Path) -> Any:
    """The bindings as a module, under the name `tensorrt`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "tensorrt-cu13-bindings"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    major = wheel.name.split("-")[1].partition(".")[0]
    source = folder / "empty.c"
    source.write_text("\n".join(f"void* {name}(void) {{ return 0; }}" for name in EXPORTS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / name), f"-Wl,-soname,{name}", str(source)], check=True)
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    module = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = module
    return module


def ahead(module: Any, folder: Path) -> dict[str, str]:
    """Signatures of what is used of `tensorrt.plugin`, and whether it takes our operators."""
    module.__path__ = [str(folder / "tensorrt_bindings")]
    creators: dict[str, Any] = {}
    registry = SimpleNamespace(
        register_creator=lambda creator, namespace: creators.setdefault(creator.name, creator) is creator,
        get_creator=lambda name, version, namespace: creators[name],
    )
    module.get_plugin_registry = lambda: registry
    plugin = importlib.import_module("tensorrt.plugin")
    take_operators(plugin, creators, module)
    return {name: _text(getattr(plugin, name)) for name in AHEAD} | {
        "SymIntExprs.from_tuple": _text(plugin.SymIntExprs.from_tuple),
        "TensorDesc.attributes": ", ".join(name for name in ("dtype", "shape_expr") if hasattr(plugin.TensorDesc, name)),
        "ShapeExpr.attributes": ", ".join(name for name in ("is_constant", "constant_value") if hasattr(plugin.ShapeExpr, name)),
    }


def _text(value: Any) -> str:
    return str(inspect.signature(value)) if not inspect.isclass(value) else str(inspect.signature(value.__init__))


def take_operators(plugin: Any, creators: dict[str, Any], module: Any) -> None:
    """Registers our operators with the package's own code, which checks their signatures, and makes a plugin of each."""
    import numpy as np

    from hart_edge.plugins.adapter import Faults
    from hart_edge.plugins.ahead_plugin import register_ahead
    from hart_edge.plugins.graph_ops import GRAPH_OPS

    ops = [op for op in GRAPH_OPS.values() if op.ahead is not None]
    register_ahead(plugin, ops, lambda text: b"", Faults())
    assert sorted(creators) == sorted(op.name for op in ops)
    for op in ops:
        fields = [
            module.PluginField(name, np.array([1], kind), getattr(module.PluginFieldType, "FLOAT64" if kind is float else "INT64"))
            for name, kind in op.attributes.items()
        ]
        request = module.QuickPluginCreationRequest.STRICT_AOT
        made = creators[op.name].create_plugin(op.name, "hart", module.PluginFieldCollection(fields), module.TensorRTPhase.BUILD, request)
        types = made.get_output_data_types([module.DataType.HALF] * op.inputs, [4 if op.name == "SplitRotary" else 2] * op.inputs)
        assert list(types) == [module.DataType.HALF] * op.outputs


if __name__ == "__main__":
    main()
