"""The build process: what it sends, and every way in which it can end."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hart_edge.export.build import build_bundle, process
from hart_edge.export.build.builder import EngineJob
from hart_edge.export.build.process import BuildJob
from hart_edge.export.build.shapes import dimension_ranges
from hart_edge.runtime import Bundle
from hart_edge.runtime.bundle import bundled_folder
from hart_edge.runtime.errors import EngineError, InputError


def killed(connection: Connection, job: BuildJob) -> None:
    connection.send(("step", "parsing transformer"))
    connection.send(("node", "node_matmul_7 [MatMul]"))
    os.kill(os.getpid(), signal.SIGKILL)


def gone(connection: Connection, job: BuildJob) -> None:
    connection.send(("step", "building decoder"))
    os._exit(3)


def full_disk(connection: Connection, job: BuildJob) -> None:
    connection.send(OSError(errno.ENOSPC, "No space left on device"))


def endless(connection: Connection, job: BuildJob) -> None:
    connection.send(("step", "building transformer"))
    signal.pause()


@pytest.fixture
def bundle() -> Bundle:
    return Bundle(bundled_folder(), check_files=False)


def nothing_left(tmp_path: Path) -> bool:
    return not list(tmp_path.iterdir()) and not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (killed, r"was ended by signal 9 while parsing transformer, at node node_matmul_7 \[MatMul\]"),
        (gone, r"ended with code 3 while building decoder\."),
    ],
)
def test_death_is_reported(body: object, message: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "work", body)
    with pytest.raises(EngineError, match=message):
        build_bundle(bundle, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_full_disk(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "work", full_disk)
    with pytest.raises(InputError, match=r"cannot write .*out: No space left on device"):
        build_bundle(bundle, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_cancelled(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(what: str, done: int, total: int) -> None:
        if what == "building transformer":
            assert multiprocessing.active_children()
            raise KeyboardInterrupt

    monkeypatch.setattr(process, "work", endless)
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


def test_a_second_build_differs_at_most_in_numbering(bundle: Bundle, tmp_path: Path) -> None:
    """Same facts and same size; the bytes themselves are not the same every time."""
    engines = [EngineJob("context", bundle.engine("context"), tmp_path / name) for name in ("one", "two")]
    first, second = (
        list(process.run(BuildJob("tensorrt-rtx", ("sm86",), dimension_ranges(bundle.spec, 2), (engine,)))) for engine in engines
    )
    assert first == second
    assert (tmp_path / "one").stat().st_size == (tmp_path / "two").stat().st_size > 100_000


def test_damaged_graph(bundle: Bundle, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(bundle.engine("context").read_bytes()[:-700])
    job = BuildJob("tensorrt-rtx", ("sm86",), dimension_ranges(bundle.spec, 1), (EngineJob("context", cut, tmp_path / "x.engine"),))
    with pytest.raises(EngineError, match=r"cut\.onnx"):
        list(process.run(job))
