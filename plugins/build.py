"""Compile every kernel ahead of time, with no GPU: proof that all of them compile, and a cache that is warm.

    python -m hart_edge.plugins.build --target sm75,sm80,sm86,sm89,sm90,sm120

Exit code 1 names the source, the kernels, the target and the compiler's log if one does not compile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hart_edge.runtime.cli.output import complain, console, progress_bar
from hart_edge.runtime.errors import HartError, InputError, KernelError
from hart_edge.runtime.kernel_cache import KernelCache
from hart_edge.runtime.kernels import KernelLike, expressions_of, fits, needs
from hart_edge.runtime.nvrtc import Compiled, unit

TARGETS = (75, 80, 86, 89, 90, 120)
ALL = ",".join(f"sm{target}" for target in TARGETS)
Results = dict[tuple[str, int], Compiled]

_KERNEL = re.compile(r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.DOTALL)


def build(kernels: Iterable[KernelLike], sources: Mapping[str, str], targets: Iterable[int], cache: KernelCache) -> Results:
    """Compile every source for every target, all its kernels together; a source without kernels there has no entry.

    One compilation per core at a time: NVRTC takes one core each. Raises KernelError that lists each kernel that does not
    compile, with source, target and the compiler's log.
    """
    kernels = tuple(kernels)
    work = [(name, target) for name in sorted({k.source for k in kernels}) for target in targets]

    def compile_one(job: tuple[str, int]) -> Compiled | KernelError | None:
        name, target = job
        expressions = expressions_of(kernels, name, target)
        try:
            return cache.get(unit(name, sources, expressions), target) if expressions else None
        except KernelError as error:
            return KernelError(_blame(name, sources, expressions, target, cache) or error.message)

    with ThreadPoolExecutor(os.cpu_count()) as executor, progress_bar() as bar:
        found = list(bar.track(executor.map(compile_one, work), total=len(work), description="compiling"))
    failures = [outcome.message for outcome in found if isinstance(outcome, KernelError)]
    if failures:
        raise KernelError("\n".join(failures))
    return {job: outcome for job, outcome in zip(work, found, strict=True) if isinstance(outcome, Compiled)}


def _blame(name: str, sources: Mapping[str, str], expressions: Iterable[str], target: int, cache: KernelCache) -> str:
    """Each kernel that does not compile on its own, with its log."""
    lines = []
    for expression in expressions:
        try:
            cache.get(unit(name, sources, (expression,)), target)
        except KernelError as error:
            lines.append(f"{expression}: {error.message}")
    return "\n".join(lines)


def usage(compiled: Compiled) -> dict[str, tuple[int, int]]:
    """Registers per thread and bytes spilled, by expression, from the compiler's log."""
    found = {name: (int(registers), int(spilled)) for name, spilled, registers in _KERNEL.findall(compiled.log)}
    return {expression: found[name] for expression, name in compiled.names.items() if name in found}


def table(kernels: Iterable[KernelLike], results: Results) -> Table:
    """A row of sizes per source and, below it, a row of registers per kernel; one column per target."""
    targets = sorted({target for _, target in results})
    view = Table("source, kernel", *(f"sm{target}" for target in targets), title="KiB of machine code; registers (+ bytes spilled)")
    for source in sorted({name for name, _ in results}):
        view.add_row(source, *(f"{len(results[source, t].cubin) / 1024:.0f} KiB" if (source, t) in results else "" for t in targets))
        used = {target: usage(results[source, target]) for target in targets if (source, target) in results}
        for kernel in kernels:
            if kernel.source == source:
                view.add_row(f"  {kernel.expression}", *(_cell(kernel, target, used.get(target, {})) for target in targets))
    return view


def _cell(kernel: KernelLike, target: int, used: Mapping[str, tuple[int, int]]) -> str:
    if not fits(kernel, target):
        return f"needs {needs(kernel)}"
    registers, spilled = used.get(kernel.expression, (0, 0))
    return f"{registers or '?'}{f' + {spilled}' if spilled else ''}"


def parse_targets(text: str) -> tuple[int, ...]:
    """ "sm75,sm80" as (75, 80); InputError for anything else."""
    if not re.fullmatch(r"sm\d{2,3}(,sm\d{2,3})*", text):
        raise InputError(f"target {text!r} is not a list of architectures; expected for example sm75,sm90.")
    return tuple(int(name[2:]) for name in text.split(","))


def command(
    target: Annotated[str, typer.Option(help="Architectures, separated by commas.")] = ALL,
    cache: Annotated[Path | None, typer.Option(help="Folder of the compiled kernels; the user's cache folder if not given.")] = None,
) -> None:
    """Compile every kernel for every target."""
    from . import KERNELS
    from .kernel import sources

    try:
        targets = parse_targets(target)
        store = KernelCache(cache)
        results = build(KERNELS, sources(), targets, store)
    except HartError as error:
        complain("error", str(error))
        raise typer.Exit(1 if isinstance(error, KernelError) else error.exit_code) from error
    out: Console = console()
    out.print(table(KERNELS, results))
    skipped = sorted({f"{k.expression} needs {needs(k)}, skipped for sm{t}" for k in KERNELS for t in targets if not fits(k, t)})
    for line in skipped:
        out.print(line, markup=False)
    out.print(f"{len(results)} modules of {len(KERNELS)} kernels in {store.folder}", markup=False)


if __name__ == "__main__":
    typer.run(command)
