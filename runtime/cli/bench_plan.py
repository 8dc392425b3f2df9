"""`hart-edge bench --plan`: the fused engine's device memory, computed before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..backends import AUTO, CUDA
from ..bundle import Bundle
from ..errors import InputError
from ..fused.memory_plan import MemoryPlan, plan_memory
from .output import console, mebibytes, write_json

OUTSIDE = (
    "Not counted: the driver's context and the kernels of CUDA, cuBLASLt and cuDNN, between 565 and 573 MiB on one NVIDIA H200 "
    "with CUDA 13.0, and other programs."
)


def show_plans(bundle: Bundle, backend: str, batches: tuple[int, ...], low_vram: bool, json_file: Path | None) -> None:
    """A table per batch size; InputError for a backend whose memory is not planned beforehand."""
    if backend not in (AUTO, CUDA):
        raise InputError(f"--plan was asked of backend {backend}; expected {CUDA}, whose memory is known beforehand.")
    plans = [plan_memory(bundle, batch, low_vram) for batch in batches]
    write_json(json_file, {"bundle": str(bundle.root), "plans": [plan.to_json() for plan in plans]})
    if str(json_file) != "-":
        for plan in plans:
            console().print(table(plan, str(bundle.root)))
        console().print(OUTSIDE)


def table(plan: MemoryPlan, name: str) -> Table:
    """Every phase's parts, and what is in use in it."""
    title = f"{name}: device memory, batch {plan.batch}{', low VRAM' if plan.low_vram else ''}"
    view = Table(title=title, title_justify="left")
    for i, column in enumerate(("phase", "weights", "workspace", "tensors", "in use")):
        view.add_column(column, justify="right" if i else "left")
    for phase, part in plan.phases.items():
        view.add_row(phase, *map(mebibytes, (part.weights, part.workspace, part.tensors, plan.in_use[phase])))
    view.add_section()
    view.add_row("products' scratch, in every phase", "", mebibytes(plan.scratch), "", "")
    for share, size in plan.scale_loop.items():
        view.add_row(f"scale loop's workspace: {share}", "", mebibytes(size), "", "")
    view.add_section()
    view.add_row(f"peak, in the {plan.peak_phase}", "", "", "", mebibytes(plan.peak))
    return view
