"""Puts the commands together and turns every expected error into one message and an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import typer

from ..errors import HartError, HartWarning
from . import bench, build, calibrate, compare, doctor, generate, inspect, judge, tools, warmup
from .output import complain

CANCELLED = 130  # 128 + SIGINT, as shells expect

app = typer.Typer(
    help="HART text-to-image: export, run and verify engines.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
app.command("generate")(generate.generate)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.command("export")(tools.export)
app.command("verify")(tools.verify)
app.command("build")(build.build)
app.command("warmup")(warmup.warmup)
app.command("calibrate")(calibrate.calibrate)
app.command("sensitivity")(calibrate.sensitivity)
app.command("compare")(compare.compare)
app.command("eval")(judge.evaluate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", HartWarning)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        app(arguments, prog_name="hart-edge")
    except HartError as error:
        complain("error", str(error))
        return error.exit_code
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
        if code == CANCELLED:
            complain("cancelled", "nothing was left half-written.")
        return code
    return 0


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    if issubclass(category, HartWarning):
        complain("warning", str(message))
