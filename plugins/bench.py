"""Time every operator on the card, beside the rate at which the card copies memory.

    python -m hart_edge.plugins.bench [--sizes 1024] [--json kernels.json]

An operator is judged by bandwidth where its bytes take longer than a launch; the others are listed with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hart_edge.runtime.cli.output import complain, console, progress_bar, write_json
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.drivers import AUTO
from hart_edge.runtime.errors import HartError, InputError
from hart_edge.runtime.kernel_cache import KernelCache
from hart_edge.runtime.kernels import KernelLibrary

from .bench_case import PATCH_NUMS, Case
from .bench_cases import cases
from .bench_device import Timing, copy_rate, time_case
from .catalogue import KERNELS
from .kernel import sources

LEAST_FRACTION = 0.75
"""Of the copy rate, for the operators that are judged by bandwidth at 1024 px."""
SHORT = 10.0
"""Microseconds at the copy rate below which starting a kernel and filling the card take a good part of its time."""


def unjudged(case: Case, moved: int, rate: float) -> str:
    """Why a case that moves so many bytes is not judged by bandwidth on a card of this copy rate; empty if it is."""
    least = moved / rate * 1e6
    return case.reason or (f"too short: its bytes take {least:.1f} µs at the copy rate" if least < SHORT else "")


def entry(timing: Timing, rate: float) -> dict[str, Any]:
    """One case for the JSON file; times in µs, sizes in bytes, rates in bytes per second."""
    case = timing.case
    return {
        "operator": case.operator,
        "detail": case.detail,
        "dtype": case.dtype,
        "microseconds": timing.microseconds,
        "bytes": timing.moved,
        "rate": timing.rate,
        "fraction": timing.rate / rate,
        "unjudged": unjudged(case, timing.moved, rate),
    }


def table(entries: list[dict[str, Any]], title: str) -> Table:
    """A row per case; those below LEAST_FRACTION say so."""
    view = Table("operator", "size", "type", title=title, title_justify="left")
    for name in ("µs", "MB", "GB/s", "of copy"):
        view.add_column(name, justify="right")
    view.add_column("judged")
    for e in entries:
        verdict = e["unjudged"] or ("reached" if e["fraction"] >= LEAST_FRACTION else f"below {LEAST_FRACTION:.0%}")
        figures = (f"{e['microseconds']:.1f}", f"{e['bytes'] / 1e6:.1f}", f"{e['rate'] / 1e9:.0f}", f"{e['fraction']:.0%}")
        view.add_row(e["operator"], e["detail"], e["dtype"], *figures, verdict)
    return view


def command(
    sizes: Annotated[int, typer.Option(help="Side of the picture whose sizes are taken: 1024 or 512.")] = 1024,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures; - for standard output.")] = None,
    host: Annotated[str, typer.Option(help="CUDA host: auto, cuda-python or pycuda.")] = AUTO,
    cache: Annotated[Path | None, typer.Option(help="Folder of the compiled kernels; the user's cache folder if not given.")] = None,
) -> None:
    """Time every operator on the card."""
    try:
        report = measure(sizes, host, cache)
    except HartError as error:
        complain("error", str(error))
        raise typer.Exit(error.exit_code) from error
    write_json(json_file, report)
    if str(json_file) != "-":
        title = f"{report['device']}, {report['host']}: copies {report['copy_rate'] / 1e9:.0f} GB/s, read and written"
        console().print(table(report["cases"], title))
    if report["failed"]:
        raise typer.Exit(1)


def measure(sizes: int, host: str, cache: Path | None) -> dict[str, Any]:
    """Device, copy rate in bytes per second, every case's figures, and what failed: one case's failure stops no other."""
    if sizes not in PATCH_NUMS:
        raise InputError(f"sizes is {sizes}; expected one of {', '.join(map(str, PATCH_NUMS))}.")
    with Device(host=host) as device, progress_bar() as bar:
        library = KernelLibrary(device, sources(), KERNELS, KernelCache(cache))
        rate = copy_rate(device)
        found, failed = [], []
        able = [case for case in cases(sizes) if case.minimum <= device.info.capability <= case.maximum]
        for case in bar.track(able, description="timing"):
            try:
                found.append(entry(time_case(device, library, case), rate))
            except HartError as error:
                failed.append(f"{case.operator}, {case.detail}, {case.dtype}: {error}")
                complain("error", failed[-1])
        facts = {"device": device.info.name, "host": device.driver.name, "sizes": sizes, "copy_rate": rate}
    return {**facts, "cases": found, "failed": failed}


if __name__ == "__main__":
    typer.run(command)
