"""Commands that need engines: built where they are missing, stale, too small or for another card, and the reason is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_engines import edit, make_engines
from tensorrt_double import Opener, TrtDouble

from hart_edge.export import build as build_package
from hart_edge.export import verify as verify_package
from hart_edge.export.verify.checks import Report
from hart_edge.runtime import Bundle, InputError
from hart_edge.runtime import pipeline as pipeline_module
from hart_edge.runtime.cli import engines as engines_module
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.cli.engines import ensure_engines
from hart_edge.runtime.doctor.gpu import Gpu, GpuState
from hart_edge.runtime.files import sha256_of
from hart_edge.runtime.trt.packages import TensorRtPackage
from hart_edge.runtime.trt.sidecar import engine_folders


@pytest.fixture
def built(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was built, with which settings; the package is there in version 1.7.1.116."""
    calls: list[dict[str, Any]] = []

    def build(bundle: Bundle, folder: Path, backend: str, **settings: Any) -> None:
        calls.append({"folder": folder, "backend": backend} | {k: v for k, v in settings.items() if k != "progress"})
        for file in folder.glob("*"):
            file.unlink()
        if folder.exists():
            folder.rmdir()
        make_engines(folder, bundle, backend, batch=settings["batch"])

    monkeypatch.setattr(build_package, "build_bundle", build)
    monkeypatch.setattr(TensorRtPackage, "require", lambda self: None)
    monkeypatch.setattr(TensorRtPackage, "version", lambda self: "1.7.1.116")
    return calls


def test_missing_engines_are_built_once(
    bundle: Bundle, cache_home: Path, built: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = engine_folders(bundle.root, "tensorrt-rtx")[-1]
    assert ensure_engines(bundle, "tensorrt-rtx", 1) == folder
    assert built == [{"folder": folder, "backend": "tensorrt-rtx", "batch": 4, "plugins": "none", "overwrite": False}]
    assert "engines are built: there are none in" in capsys.readouterr().err
    assert ensure_engines(bundle, "tensorrt-rtx", 4) == folder and len(built) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("backend", ["auto", "cpu", "cuda", "ort-cuda"])
def test_other_backends_need_none(backend: str, bundle: Bundle, built: list[dict[str, Any]]) -> None:
    assert ensure_engines(bundle, backend, 8) is None and built == []


def change(folder: Path, **entries: Any) -> None:
    raw = json.loads((folder / "engines.json").read_text())
    (folder / "engines.json").write_text(json.dumps(raw | entries))


@pytest.mark.parametrize(
    ("entries", "batch", "reason"),
    [
        ({}, 3, r"are for 2 pictures at a time; 3 are asked for"),
        ({"source": {}}, 1, r"were built from another bundle: context\.onnx differs"),
        ({"tools": {"tensorrt_rtx": "1.6.0.1"}}, 1, r"were built with TensorRT 1\.6\.0\.1; installed is 1\.7\.1\.116"),
        ({"schema": 1}, 1, "schema 1; this hart-edge reads schema 2"),
        ({"targets": ["sm75"]}, 1, "are for sm75; a card has sm86"),
    ],
)
def test_engines_that_do_not_fit_are_built_anew_and_the_reason_is_told(
    entries: dict[str, Any],
    batch: int,
    reason: str,
    bundle: Bundle,
    folder: Path,
    built: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the plugins that they had."""
    monkeypatch.setattr(engines_module, "look_at_gpus", lambda: GpuState(13000, (Gpu(0, "a card", 86, 1 << 33, 1 << 32),), None))
    edit(folder, "context", plugins={"SwiGlu": {"nodes": 1, "form": "python"}})
    change(folder, **entries)
    ensure_engines(bundle, "tensorrt-rtx", batch)
    assert [(call["overwrite"], call["plugins"]) for call in built] == [(True, "none" if "schema" in entries else "SwiGlu")]
    assert re.search(f"engines are built: .*{reason}", " ".join(capsys.readouterr().err.split()))


def test_a_folder_of_something_else_is_left_alone(bundle: Bundle, cache_home: Path, built: list[dict[str, Any]]) -> None:
    folder = engine_folders(bundle.root, "tensorrt-rtx")[-1]
    folder.mkdir(parents=True)
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds no engines and is not overwritten"):
        ensure_engines(bundle, "tensorrt-rtx", 1)
    assert built == []


def test_warmup_draws_twice_and_keeps_what_was_compiled(
    bundle: Bundle,
    cache_home: Path,
    built: list[dict[str, Any]],
    trt: TrtDouble,
    open_trt: Opener,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipeline_module, "open_backend", lambda name, threads, low_vram: open_trt(trt))
    monkeypatch.setattr(pipeline_module, "candidates", lambda *_: ("tensorrt-rtx",))
    with pytest.warns(Warning, match="sampling"):
        assert run(["warmup", "--backend", "tensorrt-rtx", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "bundled on tensorrt-rtx, seconds per call:" in out and "second" in out
    assert trt.names().count("IRuntimeCache.serialize") == 7
    assert len(list((cache_home / "hart-edge" / "tensorrt").glob("*.cache"))) == 7


@pytest.mark.parametrize(("batch", "message"), [("0", "batch is '0'"), ("x", "batch is 'x'")])
def test_warmup_refuses_bad_numbers(batch: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["warmup", "--batch", batch]) == 2
    assert message in capsys.readouterr().err


def test_verify_writes_the_certificate_beside_the_engines(
    bundle: Bundle, folder: Path, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves the bundle's own as it is."""
    before, report = sha256_of(bundle.root / "accuracy.json"), Report("bundled with engines")
    report.backend = "tensorrt-rtx"
    report.add("engines", "teacher-forced", "error", 0.0, None)
    monkeypatch.setattr(verify_package, "verify_bundle", lambda *arguments: report)
    assert run(["verify", "--backend", "tensorrt-rtx"]) == 0
    certificate = json.loads((folder / "accuracy.json").read_text())
    assert certificate["engines_sha256"] == sha256_of(folder / "engines.json") and certificate["backend"] == "tensorrt-rtx"
    assert certificate["gpu"] == {"cuda": None, "cards": []} or certificate["gpu"]["cards"]
    assert sha256_of(bundle.root / "accuracy.json") == before
    assert built == []


def test_inspect_lists_engines(bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "--json", "-"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["engine_folders"]
    assert facts == {
        "backend": "tensorrt-rtx",
        "folder": str(folder),
        "targets": ["sm75", "sm80", "sm86", "sm89", "sm120"],
        "precision": "fp16",
        "batch": 2,
        "version": "1.7.1.116",
        "total_bytes": sum(path.stat().st_size for path in folder.glob("*.engine")),
        "certificate": "not verified: no accuracy.json",
        "problem": "",
    }
    assert run(["inspect"]) == 0
    assert "sm75, sm80, sm86, sm89, sm120; fp16; up to 2 pictures" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("entries", "problem"), [({"source": {}}, "built from another bundle"), ({"schema": 1}, "reads schema 2")])
def test_inspect_says_what_is_wrong_with_engines(
    entries: dict[str, Any], problem: str, bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, **entries)
    assert run(["inspect", "--json", "-"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["engine_folders"]
    assert problem in facts["problem"]
