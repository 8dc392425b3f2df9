"""Processes whose addresses repeat: what they keep of the environment, and that they import nothing from where they work."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from hart_edge.export import build as build_package
from hart_edge.export.build import steady
from hart_edge.runtime.cli.app import run


def answer(entry: str, folder: Path, **environment: str) -> str:
    """What a function of `workers.py` writes."""
    with tempfile.TemporaryFile() as errors:
        started = steady.start(f"workers:{entry}", environment, errors, folder)
        out, _ = started.communicate(timeout=60)
        errors.seek(0)
        assert started.returncode == 0, errors.read().decode()
    return out.decode()


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_the_environment_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_LONG", "x" * 1000)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    seen = answer("environment", tmp_path, LD_LIBRARY_PATH="/extra").split()
    assert "PYTHONHASHSEED=0" in seen and "LD_LIBRARY_PATH=/extra" in seen and f"PYTHONPATH={Path(__file__).parent}" in seen
    assert not [entry for entry in seen if entry.startswith("SOMETHING_LONG")]


def test_addresses_repeat(tmp_path: Path) -> None:
    first, second = (answer("addresses", tmp_path) for _ in range(2))
    if not first.startswith("True"):
        pytest.skip("needs a system that lets a process turn address randomisation off and choose its scheduler")
    assert first == second


@pytest.mark.parametrize("name", ["ctypes", "pickle", "numpy", "tensorrt_rtx", "workers"])
def test_nothing_is_imported_from_the_working_folder(name: str, tmp_path: Path) -> None:
    """A bundle is data, whatever its files are called."""
    (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the bundle')")
    assert "workers.py" in answer("imports", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: elsewhere nothing is settled")
def test_where_nothing_can_be_settled_the_process_starts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "_SETTLE", steady._SETTLE.replace("ctypes.CDLL(None).personality", "(lambda flag: os.close(-1))"))
    assert answer("addresses", tmp_path).startswith("False")


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_build_that_may_differ_says_so(
    repeatable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = dict.fromkeys(("attention", "attention_lengths", "kv_cache_updates", "quantize", "dequantize"), 0)
    counts = counted | {"bytes": 9, "layers": {}, "plugins": {}}
    facts = {"backend": "tensorrt-rtx", "precision": "fp16", "targets": ["sm86"], "batch": 4}
    engines = {"engines": {"context": counts | {"repeatable": repeatable}}}
    monkeypatch.setattr(build_package, "build_bundle", lambda *arguments: facts | engines)
    assert run(["build", "-o", str(tmp_path / "out"), "--target", "sm86"]) == 0
    said = "a second build may differ in some bytes" in " ".join(capsys.readouterr().err.split())
    assert said != repeatable


def test_this_process_is_not_settled() -> None:
    assert not steady.is_steady()
