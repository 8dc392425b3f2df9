"""The picture of a report of `hart-edge bench`: seconds per stage for every batch size, and pictures per second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .train.plots import figure, save

Report = dict[str, Any]


def plot(report: Report, out: Path) -> None:
    """Write a PNG: a panel of stacked bars per batch size, with one legend above all, and one of pictures per second over the batch."""
    rounds = report["rounds"]
    drawn, axes = figure(4 + 4 * len(rounds), 4.5, 1, len(rounds) + 1)
    for axis, now in zip(axes[0], rounds, strict=False):
        stack(axis, now)
    throughput(axes[0][-1], rounds)
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=7, fontsize="small")
    save(drawn, out)


def stack(axis: Any, now: Report) -> None:
    """One bar per contender, and one of the arithmetic floor where it is known; the stages from bottom to top."""
    bars = {name: result["stages"] for name, result in now["contenders"].items()} | ({"floor": now["floor"]} if now["floor"] else {})
    bottom = dict.fromkeys(bars, 0.0)
    for stage in dict.fromkeys(stage for stages in bars.values() for stage in stages):
        heights = {name: 1e3 * stages.get(stage, 0.0) for name, stages in bars.items()}
        axis.bar(list(bars), list(heights.values()), bottom=list(bottom.values()), label=stage)
        bottom = {name: bottom[name] + height for name, height in heights.items()}
    axis.set(title=f"batch {now['batch']}", ylabel="ms")
    axis.tick_params(axis="x", labelrotation=30)


def throughput(axis: Any, rounds: list[Report]) -> None:
    """Pictures per second over the batch size, a line per contender."""
    for name in dict.fromkeys(name for now in rounds for name in now["contenders"]):
        points = [(now["batch"], now["contenders"][name]["images_per_second"]) for now in rounds if name in now["contenders"]]
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    axis.set(title="throughput", xlabel="batch", ylabel="pictures per second", xticks=[now["batch"] for now in rounds], ylim=(0, None))
    axis.legend(fontsize="small")
