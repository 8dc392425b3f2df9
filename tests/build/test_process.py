"""The build process: what it sends, and every way in which it can end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hart_edge.export.build import build_bundle, process, steady
from hart_edge.export.build.shapes import dimension_ranges
from hart_edge.export.build.worker import BuildJob, EngineJob
from hart_edge.runtime import Bundle
from hart_edge.runtime.bundle import bundled_folder
from hart_edge.runtime.errors import EngineError, InputError

STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a function of `workers.py` in the place of the real worker."""

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        STARTED.append(steady.start(*arguments))
        return STARTED[-1]

    def replace(name: str) -> None:
        monkeypatch.setattr(process, "start", start)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        monkeypatch.setattr(process, "WORKER", f"workers:{name}")

    return replace


@pytest.fixture
def bundle() -> Bundle:
    return Bundle(bundled_folder(), check_files=False)


def nothing_left(tmp_path: Path) -> bool:
    """No file, and no process that is still running: each was waited for."""
    return not list(tmp_path.iterdir()) and all(started.returncode is not None for started in STARTED)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("killed", r"was ended by signal 9 while parsing transformer, at node node_matmul_7 \[MatMul\]"),
        ("gone", r"ended with code 3 while building decoder\. Its last words: terminate called without an active exception"),
    ],
)
def test_death_is_reported(body: str, message: str, bundle: Bundle, tmp_path: Path, worker: Callable[[str], None]) -> None:
    worker(body)
    with pytest.raises(EngineError, match=message):
        build_bundle(bundle, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_full_disk(bundle: Bundle, tmp_path: Path, worker: Callable[[str], None]) -> None:
    worker("full_disk")
    with pytest.raises(InputError, match=r"cannot write .*out: No space left on device"):
        build_bundle(bundle, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_cancelled(bundle: Bundle, tmp_path: Path, worker: Callable[[str], None]) -> None:
    def cancel(what: str, done: int, total: int) -> None:
        if what == "building transformer":
            raise KeyboardInterrupt

    worker("endless")
    with pytest.raises(KeyboardInterrupt):
        build_bundle(bundle, tmp_path / "out", progress=cancel)
    assert nothing_left(tmp_path)


def test_the_real_process(bundle: Bundle, tmp_path: Path) -> None:
    """One engine written, the next one refused by a full device."""
    condition = bundle.engine("residual_condition")
    jobs = (EngineJob("residual_condition", condition, tmp_path / "x.engine"), EngineJob("again", condition, Path("/dev/full")))
    answers = process.run(BuildJob("tensorrt-rtx", ("sm86",), dimension_ranges(bundle.spec, 2), jobs))
    kinds = [next(answers) for _ in range(3)]
    assert kinds[:2] == [("step", "parsing residual_condition"), ("step", "building residual_condition")]
    assert kinds[2][0] == "built" and kinds[2][1]["inputs"][1]["max"] == (2, 256)
    assert (tmp_path / "x.engine").read_bytes()[:4] == b"vtrt"
    with pytest.raises(OSError, match="No space left"):
        list(answers)


def test_two_builds_are_the_same_to_the_byte(bundle: Bundle, tmp_path: Path) -> None:
    """The engine that varies most where addresses do, written to places of different names. A scheduler may still let one thread
    overtake another: at most once in three.
    """
    ranges, made = dimension_ranges(bundle.spec, 2), []
    for name in ("x.engine", "somewhere else.engine", "y" * 50):
        output = tmp_path / name
        job = BuildJob("tensorrt-rtx", ("sm86",), ranges, (EngineJob("transformer", bundle.engine("transformer"), output),))
        facts = list(process.run(job))[-1][1]
        if not facts["repeatable"]:
            pytest.skip("needs a system that lets a process turn address randomisation off and choose its scheduler")
        made.append(output.read_bytes())
        if made.count(made[-1]) > 1:
            return
    pytest.fail(f"three builds of {len(made[0])} bytes, all different")


def test_damaged_graph(bundle: Bundle, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(bundle.engine("context").read_bytes()[:-700])
    job = BuildJob("tensorrt-rtx", ("sm86",), dimension_ranges(bundle.spec, 1), (EngineJob("context", cut, tmp_path / "x.engine"),))
    with pytest.raises(EngineError, match=r"cut\.onnx"):
        list(process.run(job))
