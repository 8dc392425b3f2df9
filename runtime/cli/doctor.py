"""`hart-edge doctor`: what this machine has, what every backend lacks on it, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..doctor import Report, diagnose
from ..doctor.abilities import Ability
from ..doctor.gpu import GpuState, cuda_text
from ..doctor.machine import Disk
from ..doctor.packages import Package
from .output import console, mebibytes, write_json

BROKEN = "Not even the CPU works: the core install is broken."
Row = tuple[str, str]


def doctor(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings as JSON; - for standard output.")] = None,
) -> None:
    """Say what works on this machine, what does not, and the command that mends it."""
    report = diagnose()
    write_json(json_file, report.to_json())
    if str(json_file) != "-":
        out = console()
        out.print(_facts(report))
        out.print(_abilities(report.abilities))
        for command in _remedies(report.abilities):
            out.print(command, markup=False, soft_wrap=True)
        out.print(BROKEN if report.auto is None else f"--backend auto takes {report.auto}.")
    if report.auto is None:
        raise typer.Exit(1)


def _facts(report: Report) -> Table:
    system, model = report.system, report.model
    table = Table(title="hart-edge doctor", title_justify="left", show_header=False)
    sections: list[list[Row]] = [
        [
            ("system", system.os),
            ("Python", f"{system.python}, {system.executable}"),
            ("CPU", f"{system.cpus} cores"),
            ("memory", mebibytes(system.memory)),
        ],
        [_package(package) for package in report.packages],
        list(_gpus(report.gpu)),
        [_disk(disk) for disk in report.disks],
        [("bundled model", f"{'present' if model.usable else 'not usable'}, {model.summary}")],
    ]
    for rows in sections:
        for name, value in rows:
            table.add_row(escape(name), escape(value))
        table.add_section()
    return table


def _package(package: Package) -> Row:
    source = f"of [{package.extra}]" if package.extra else "of the core install"
    if package.version is None:
        return package.name, f"absent, {source}"
    return package.name, package.version if package.fits else f"{package.version}, expected {package.expected} ({source})"


def _gpus(state: GpuState) -> Iterator[Row]:
    if state.cuda is not None:
        yield "NVIDIA driver", f"supports CUDA {cuda_text(state.cuda)}"
    if state.problem is not None:
        yield "GPU", state.problem.what
    for gpu in state.gpus:
        free = gpu.problem if gpu.free is None else f"{mebibytes(gpu.free)} free"
        yield f"GPU {gpu.index}", f"{gpu.name}, SM{gpu.capability}, {mebibytes(gpu.memory)}, {free}"


def _disk(disk: Disk) -> Row:
    if disk.free is None:
        return disk.use, disk.problem
    return disk.use, f"{disk.folder}, {mebibytes(disk.free)} free{'' if disk.writable else ', not writable'}"


def _abilities(abilities: list[Ability]) -> Table:
    table = Table(title="what works", title_justify="left")
    for name in ("hart-edge", "works", "lacks"):
        table.add_column(name, no_wrap=name != "lacks")
    for ability in abilities:
        table.add_row(ability.command, "yes" if ability.works else "no", escape("\n".join(lack.what for lack in ability.lacks)))
    return table


def _remedies(abilities: list[Ability]) -> Iterator[str]:
    """Outside the table, so that commands can be copied whole: every command that does not work, and what mends it."""
    for ability in abilities:
        for remedy in dict.fromkeys(lack.remedy for lack in ability.lacks if lack.remedy):
            yield f"{ability.command}: {remedy}"
