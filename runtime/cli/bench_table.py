"""The report of `hart-edge bench` for people: a table per batch size."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .output import mebibytes

Row = tuple[str, list[str]]


def table(report: dict[str, Any], now: dict[str, Any]) -> Table:
    """One round of the report: a column per contender and, where it is known, one for the arithmetic floor."""
    contenders, floor = now["contenders"], now["floor"] or {}
    view = Table(title=f"{report['bundle']}: median of {report['runs']}, batch {now['batch']}", title_justify="left")
    view.add_column("")
    for name in (*contenders, *(["floor"] if floor else [])):
        view.add_column(name, justify="right")
    stages = dict.fromkeys(stage for result in contenders.values() for stage in result["stages"])
    for stage in stages:
        cells = [_time(result["stages"].get(stage)) for result in contenders.values()]
        view.add_row(stage, *cells, *([_time(floor.get(stage))] if floor else []))
    view.add_section()
    whole = [_time(result["seconds"]) for result in contenders.values()]
    view.add_row("whole run", *whole, *([_time(sum(floor.values()))] if floor else []))
    for label, cells in _facts(list(contenders.values()), now["against"], contenders):
        view.add_row(label, *cells)
    return view


def _facts(results: list[dict[str, Any]], against: str | None, contenders: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    if against is not None:
        own = contenders[against]["seconds"]
        rows.append((f"time, share of {against}", [f"{result['seconds'] / own:.2f}" for result in results]))
    return [
        *rows,
        ("images / s", [f"{result['images_per_second']:.2f}" for result in results]),
        ("image tokens / s", [f"{result['tokens_per_second']:.0f}" for result in results]),
        ("load", [f"{result['load_seconds']:.2f} s" for result in results]),
        ("peak memory", [mebibytes(result["peak_memory_bytes"]) for result in results]),
        ("peak device memory", [_size(result["peak_device_bytes"]) for result in results]),
        ("backend", [result["backend"] for result in results]),
    ]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _size(size: int | None) -> str:
    return "" if size is None else mebibytes(size)
