"""The runtime and its command line where torch, transformers and onnx cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "skimage", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK + code, *arguments], capture_output=True, text=True, timeout=120, check=False)


COMMAND = "from hart_edge.runtime.cli import main; main()"


def test_every_runtime_module_imports() -> None:
    code = "import hart_edge.runtime, pkgutil, importlib\nfor m in pkgutil.walk_packages(hart_edge.runtime.__path__, 'hart_edge.runtime.'):"
    result = python(code + "\n    importlib.import_module(m.name); print(m.name)")
    assert result.returncode == 0, result.stderr
    assert "hart_edge.runtime.cli.tools" in result.stdout and "hart_edge.runtime.scale_loop" in result.stdout


def test_generate_and_inspect_run(bundle_root: Path, tmp_path: Path) -> None:
    result = python(COMMAND, "generate", "a lighthouse at dusk", "--bundle", str(bundle_root), "-o", str(tmp_path / "out.png"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert "weights.safetensors" in python(COMMAND, "inspect", str(bundle_root)).stdout


def test_export_and_verify_say_what_to_install(bundle_root: Path, tmp_path: Path) -> None:
    for arguments in (["export", "x", "-o", str(tmp_path / "b")], ["verify", str(bundle_root), "--checkpoint", "x"]):
        result = python(COMMAND, *arguments)
        assert result.returncode == 2
        assert "pip install 'hart-edge[export]'" in result.stderr
        assert "Traceback" not in result.stderr
