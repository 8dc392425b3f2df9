"""The report's plots, as PNG bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MARKS = "osD^vP*X"


def curves(bundles: Mapping[str, Any]) -> bytes:
    """KL, distance from a cosine of 1, top-1 agreement per scale, and the diffusion's error per step."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    _lines(axes[0, 0], bundles, "logits KL", "scale", "KL divergence, nats", lambda v: np.maximum(v, 1e-12))
    _lines(axes[0, 1], bundles, "logits cosine", "scale", "1 − smallest cosine", lambda v: np.maximum(1 - v, 1e-12))
    _lines(axes[1, 0], bundles, "top-1 agreement", "scale", "share of equal top-1", None)
    _lines(axes[1, 1], bundles, "diffusion error", "step", "relative error of the prediction", lambda v: np.maximum(v, 1e-12))
    axes[0, 0].legend(fontsize=8)
    return _png(figure)


def times(contenders: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Milliseconds per stage, stacked, one bar per contender."""
    figure = Figure(figsize=(10, 0.9 + 0.42 * len(contenders)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(contenders))
    for stage in dict.fromkeys(stage for facts in contenders.values() for stage in facts["stages"]):
        widths = np.array([1e3 * facts["stages"].get(stage, 0.0) for facts in contenders.values()])
        axes.barh(list(contenders), widths, left=left, label=stage)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("ms a picture, median per stage")
    axes.legend(fontsize=7, ncols=7, loc="upper center", bbox_to_anchor=(0.5, -0.28))
    return _png(figure)


def _lines(axes: Axes, bundles: Mapping[str, Any], curve: str, axis: str, label: str, logarithmic: Callable[[Any], Any] | None) -> None:
    for number, (name, facts) in enumerate(bundles.items()):
        values = np.array(facts["series"][curve])
        axes.plot(values if logarithmic is None else logarithmic(values), marker=_MARKS[number % len(_MARKS)], label=name)
    axes.set(xlabel=axis, ylabel=label)
    axes.grid(alpha=0.3)
    if logarithmic is not None:
        axes.set_yscale("log")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": ""})
    return buffer.getvalue()
