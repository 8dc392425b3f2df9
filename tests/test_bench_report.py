"""Who runs in `hart-edge bench`, what its report says, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from hart_edge.export import bench_plot
from hart_edge.export.train.plots import figure
from hart_edge.runtime import backends
from hart_edge.runtime.bench import Loader, Measurement, Outcome, Run
from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.cli import bench as bench_command
from hart_edge.runtime.cli import bench_compare
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.cli.bench_compare import COMPARED, Asked, parse_batches, report_on
from hart_edge.runtime.cli.bench_table import table
from hart_edge.runtime.errors import GpuMemoryError, InputError

SECONDS = {"torch-eager": 4.0, "torch-compiled": 2.0, "cuda": 0.5}
ROUND = {"batch": 1, "contenders": {}, "failed": {}, "alone": [], "against": None, "flops": None, "floor": None}
FULL = GpuMemoryError("the GPU is full.", "Use a smaller batch.")


def measured(name: str, batch: int) -> Measurement:
    seconds = SECONDS[name] * batch
    run = Run({"transformer": 0.75 * seconds, "decoder": 0.25 * seconds}, seconds)
    flops = {"transformer": 600 * batch, "decoder": 400 * batch} if name.startswith("torch") else {}
    return Measurement(1.0, [run], batch, 10 * batch, 2**30, 2**31 if name == "cuda" else None, name, flops)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver and a reference are there, and ort-cuda and, at batch 8, the eager reference have too little memory."""

    def measure(contenders: dict[str, Loader], runs: int) -> Outcome:
        batch = len(contenders["torch-compiled"].arguments[-1].prompts)
        failed = {"ort-cuda"} | ({"torch-eager"} if batch == 8 else set())
        results = {name: measured(name, batch) for name in contenders if name not in failed}
        return Outcome(results, dict.fromkeys(failed, FULL), ("cuda",) if batch == 8 else ())

    def reference_loader(source: Any, precision: str, compiled: bool, job: Any) -> Loader:
        return Loader(measured, (source, precision, compiled, job))

    tools = SimpleNamespace(product_rate=lambda runs: 1e4, reference_loader=reference_loader)
    monkeypatch.setattr(backends, "has_driver", lambda: True)
    monkeypatch.setattr(bench_compare, "measure", measure)
    monkeypatch.setattr(bench_compare.export_tools, "load", lambda module: tools)


@pytest.fixture
def report(with_gpu: None, bundle_folder: Path) -> dict[str, Any]:
    asked = Asked(Bundle(bundle_folder), "auto", "a tree", 3, (1, 8), COMPARED["torch"], "source")
    *_, last = report_on(asked)
    return json.loads(json.dumps(last))


def test_batches_are_whole_numbers() -> None:
    assert parse_batches("1,4, 8,4") == (1, 4, 8)
    for text in ("", "0", "1,,2", "-1", "1.5", "four"):
        with pytest.raises(InputError, match="batch is"):
            parse_batches(text)


def test_a_comparison_has_every_backend_but_the_cpu_beside_a_gpu(monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    def contenders(backend: str, references: tuple[str, ...]) -> tuple[str, ...]:
        return bench_compare.backends(Asked(Bundle(bundle_folder), backend, "", 1, (1,), references))

    for driver, found in ((True, ("cuda", "ort-cuda")), (False, ("cpu",))):
        monkeypatch.setattr(backends, "has_driver", lambda driver=driver: driver)
        assert contenders("auto", COMPARED["torch"]) == found
        assert contenders("ort-cuda", COMPARED["torch"]) == ("ort-cuda",)
        assert contenders("auto", ()) == ("auto",)


def test_the_report_has_every_batch_with_its_floor_and_what_failed(report: dict[str, Any]) -> None:
    one, eight = report["rounds"]
    assert (one["batch"], eight["batch"]) == (1, 8)
    assert list(one["contenders"]) == ["torch-eager", "torch-compiled", "cuda"]
    assert list(eight["contenders"]) == ["torch-compiled", "cuda"]
    assert one["failed"] == {"ort-cuda": str(FULL)} and set(eight["failed"]) == {"ort-cuda", "torch-eager"}
    assert (one["alone"], eight["alone"]) == ([], ["cuda"])
    assert (one["against"], eight["against"]) == ("torch-compiled", "torch-compiled")
    assert eight["flops"] == {"transformer": 4800, "decoder": 3200}
    assert one["floor"] == {"transformer": 0.06, "decoder": 0.04}
    assert (report["product_rate"], report["runs"], report["precision"]) == (1e4, 3, "fp32")


def test_the_table_has_a_column_per_contender_and_the_floor(report: dict[str, Any], tmp_path: Path) -> None:
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    console.print(table(report, report["rounds"][0]))
    lines = [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in console.export_text().splitlines()
        if "│" in line or "┃" in line
    ]
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows[""] == ["torch-eager", "torch-compiled", "cuda", "floor"]
    assert rows["transformer"] == ["3000.0 ms", "1500.0 ms", "375.0 ms", "60.0 ms"]
    assert rows["whole run"] == ["4000.0 ms", "2000.0 ms", "500.0 ms", "100.0 ms"]
    assert rows["time, share of torch-compiled"] == ["2.00", "1.00", "0.25", ""]
    assert rows["peak device memory"] == ["", "", "2048.0 MiB", ""]


def test_the_plot_stacks_the_stages_and_shows_the_throughput(report: dict[str, Any], tmp_path: Path) -> None:
    _, axes = figure(8, 4, 1, 2)
    bench_plot.stack(axes[0][0], report["rounds"][0])
    tops = [bar.get_y() + bar.get_height() for bar in axes[0][0].containers[-1]]
    assert tops == pytest.approx([4000, 2000, 500, 100])
    bench_plot.throughput(axes[0][1], report["rounds"])
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[0][1].lines}
    assert lines == {"torch-eager": [[1, 0.25]], "torch-compiled": [[1, 0.5], [8, 0.5]], "cuda": [[1, 2], [8, 2]]}
    bench_plot.plot(report, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (1200, 450)


def test_the_first_error_is_raised_where_nothing_could_be_measured(monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    monkeypatch.setattr(bench_compare, "measure", lambda contenders, runs: Outcome({}, dict.fromkeys(contenders, FULL)))
    with pytest.raises(GpuMemoryError, match="full"):
        list(report_on(Asked(Bundle(bundle_folder), "cpu", "a tree", 1, (1,))))


def test_kernels_are_timed_at_the_sizes_nearest_to_the_bundle(monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    from hart_edge.plugins import bench

    asked: list[int] = []
    monkeypatch.setattr(bench, "measure", lambda sizes, host, cache: asked.append(sizes) or {"cases": []})
    assert bench_compare.kernels(Bundle(bundle_folder)) == {"cases": []}
    assert asked == [512]


def test_the_kernels_figures_are_in_the_json_file(
    with_gpu: None, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_command, "kernels", lambda bundle: {"cases": [bundle.root.name]})
    monkeypatch.setattr(bench_command, "report_on", lambda asked: iter([{"bundle": "b", "runs": 1, "rounds": [ROUND]}]))
    monkeypatch.setattr(Bundle, "engine", lambda self, name: self.root)
    target = tmp_path / "bench.json"
    assert run(["bench", str(bundle_folder), "--kernels", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["kernels"] == {"cases": ["bundle"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compare", "tensorflow"], "torch, torch-eager, torch-compiled"),
        (["--batch", "1,x"], "batch is '1,x'"),
        (["-n", "0"], "runs is 0"),
        (["--backend", "abacus"], "abacus"),
        (["--plot", "no/such/folder/plot.png"], "no/such/folder"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err
