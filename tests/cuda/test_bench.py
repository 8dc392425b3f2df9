"""The benchmark of the kernels over a double: what is timed, over how much memory, and what is said of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from doubles import Double, FakeCache
from rich.console import Console

from hart_edge.plugins import KERNELS, bench, bench_device, sources
from hart_edge.plugins.bench_case import Case
from hart_edge.plugins.bench_cases import cases
from hart_edge.plugins.bench_device import COPY_BYTES, LEAST_LAUNCHES, WORKING_SET, Timing, copy_rate, time_case
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.errors import GpuMemoryError
from hart_edge.runtime.kernels import KernelLibrary

ELAPSED = 1.5e-3
"""Seconds between any two events of the doubles."""


@pytest.fixture
def library(device: Device) -> KernelLibrary:
    return KernelLibrary(device, sources(), KERNELS, FakeCache())  # type: ignore[arg-type]


def calls(double: Double, bindings: str, pycuda: str) -> list[tuple[Any, ...]]:
    return double.record.of(bindings) + double.record.of(pycuda)


def case_of(operator: str, dtype: str = "float16") -> Case:
    return next(case for case in cases(1024) if (case.operator, case.dtype) == (operator, dtype))


def test_the_copy_rate_counts_what_is_read_and_what_is_written(device: Device) -> None:
    assert COPY_BYTES >= 2**30
    assert copy_rate(device) == pytest.approx(2 * COPY_BYTES / ELAPSED)


@pytest.mark.parametrize(("operator", "launches"), [("rms_norm", 1), ("group_norm_silu", 3), ("to_uint8", 1)])
def test_a_graph_goes_through_more_memory_than_any_cache(
    double: Double, device: Device, library: KernelLibrary, operator: str, launches: int
) -> None:
    timing = time_case(device, library, case_of(operator))
    sizes = [int(arguments[0]) for arguments in calls(double, "cuMemAlloc", "mem_alloc")]
    assert sum(sizes) >= WORKING_SET
    launched = len(calls(double, "cuLaunchKernel", "Function._launch_kernel"))
    rounds = launched // 2 // launches  # once to load the kernels, once for the graph
    assert rounds >= LEAST_LAUNCHES
    assert launched == 2 * launches * rounds
    assert timing.microseconds == pytest.approx(1e6 * ELAPSED / rounds)
    assert timing.rate == pytest.approx(timing.moved / (ELAPSED / rounds))


def test_short_graphs_run_until_their_times_tell_something(double: Double, device: Device, library: KernelLibrary) -> None:
    time_case(device, library, case_of("to_uint8"))
    timed = len(calls(double, "cuGraphLaunch", "")) - 1  # the first is not timed
    assert timed > bench_device.RUNS
    assert timed == math.ceil(bench_device.LEAST_MILLISECONDS / 1e3 / ELAPSED)


def test_everything_is_freed_after_a_case(double: Double, device: Device, library: KernelLibrary) -> None:
    time_case(device, library, case_of("gate_residual"))
    allocated = calls(double, "cuMemAlloc", "mem_alloc")
    assert len(calls(double, "cuMemFree", "DeviceAllocation.free")) == len(allocated) >= 3
    assert len(calls(double, "cuGraphExecDestroy", "")) == 1


def test_short_cases_are_not_judged_and_the_reason_is_given() -> None:
    plain, explained = Case("a", "", "float16", lambda t: ()), Case("b", "", "float16", lambda t: (), "arithmetic")
    assert bench.unjudged(plain, 4 * 10**7, 4e12) == ""
    assert bench.unjudged(plain, 10**7, 4e12) == "too short: its bytes take 2.5 µs at the copy rate"
    assert bench.unjudged(explained, 10**9, 4e12) == "arithmetic"


def test_the_table_says_what_reached_the_rate(tmp_path: Path) -> None:
    case = Case("swiglu", "8192 × 8192", "float16", lambda t: ())
    entries = [bench.entry(Timing(case, time, 4 * 10**8), 4e12) for time in (125.0, 200.0)]
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    console.print(bench.table(entries, "a card"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "swiglu" in line]
    assert [row[3:] for row in rows] == [["125.0", "400.0", "3200", "80%", "reached"], ["200.0", "400.0", "2000", "50%", "below 75%"]]


def test_the_report_names_what_failed_and_has_all_else(
    double: Double, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def time(device: Device, library: KernelLibrary, case: Case) -> Timing:
        if case.operator == "noise":
            raise GpuMemoryError("no memory")
        return Timing(case, 100.0, 10**8)

    monkeypatch.setattr(bench, "Device", lambda host: Device(host=double.driver))
    monkeypatch.setattr(bench, "KernelCache", lambda folder: FakeCache())
    monkeypatch.setattr(bench, "time_case", time)
    report = bench.measure(512, "auto", None)
    assert [message.split(",")[0] for message in report["failed"]] == ["noise"]
    assert "noise" in capsys.readouterr().err
    assert len(report["cases"]) == len(cases(512)) - 1
    assert (report["device"], report["sizes"], report["host"]) == ("Test GPU", 512, double.driver.name)
    assert report["copy_rate"] == pytest.approx(2 * bench_device.COPY_BYTES / ELAPSED)
    first = json.loads(json.dumps(report))["cases"][0]
    assert first["rate"] == pytest.approx(1e12)
    assert first["fraction"] == pytest.approx(first["rate"] / report["copy_rate"])
