"""Loss plots of training runs.

python -m hart_edge.export.train.plots --run DIR [--run DIR] --out PNG
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from hart_edge.runtime.errors import CheckpointError, HartError, MissingPackageError
from hart_edge.runtime.files import writable

from .state import read_log

# One panel each: title, and the measures in it, where a run has them.
PANELS = (
    ("loss", ("loss", "image", "vq")),
    ("cross-entropy, nats a token", ("ce", "ce_last", "ce_first", "held_ce", "held_ce_last")),
    ("diffusion", ("eps", "kl", "residual_error")),
    ("PSNR, dB", ("psnr_discrete", "psnr_hybrid", "psnr_codes", "psnr_diffused", "psnr_latent")),
)


def figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    """A matplotlib figure for files and its axes [rows, columns]; MissingPackageError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError("Plots need matplotlib, which is not installed.", "Run: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def save(drawn: Any, path: Path) -> None:
    with writable(path) as temporary:
        drawn.savefig(temporary, format="png", dpi=100)


def plot(runs: list[Path], out: Path) -> None:
    """One row of panels per run, over steps."""
    logs = [(run, read_log(run / "log.jsonl")) for run in runs]
    if empty := [str(run) for run, rows in logs if not rows]:
        raise CheckpointError(f"the log of {', '.join(empty)} is empty.", "Train for at least ten seconds first.")
    panels = [[panel for panel in PANELS if any(key in row for row in rows for key in panel[1])] for _, rows in logs]
    drawn, axes = figure(5 * max(map(len, panels)), 3.5 * len(logs), len(logs), max(map(len, panels)))
    for row, (run, rows) in enumerate(logs):
        for column in range(axes.shape[1]):
            if column < len(panels[row]):
                _panel(axes[row][column], f"{run.name}: {panels[row][column][0]}", panels[row][column][1], rows)
            else:
                axes[row][column].axis("off")
    save(drawn, out)


def _panel(axis: Any, title: str, keys: tuple[str, ...], rows: list[dict[str, float]]) -> None:
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axis.plot(*zip(*points, strict=True), label=key, linewidth=1.2)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True, help="--out folder of a stage; may be given again")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        plot(options.run, options.out)
    except HartError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
