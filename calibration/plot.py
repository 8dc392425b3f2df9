"""The sensitivity of every group as a picture: what it costs alone, and what was chosen."""

from __future__ import annotations

from io import BytesIO

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure

from .sensitivity import Sensitivity

FALLBACK, CHOSEN = "#c8553d", "#3d6fb0"


def draw(sensitivity: Sensitivity) -> bytes:
    """A PNG: KL divergence per scale as a map, largest KL, picture PSNR and, where it was taken, score, one row per group."""
    rows = sensitivity.rows
    scores = sensitivity.float_score is not None
    figure = Figure(figsize=(13 if scores else 11, 1.4 + 0.23 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 4 if scores else 3, sharey=True, width_ratios=[3, 2, 2, 1.3][: 4 if scores else 3])
    colours = [FALLBACK if falls else CHOSEN for falls in _fallen(sensitivity)]
    kl = np.array([row.damage.kl for row in rows])
    image = axes[0].imshow(np.log10(np.maximum(kl, 1e-6)), aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=axes[0], location="bottom", shrink=0.7, label="log₁₀ KL of the logits, nats")
    axes[0].set(xlabel="scale", xticks=range(kl.shape[1]), yticks=range(len(rows)), yticklabels=[row.group for row in rows])
    axes[0].tick_params(axis="y", labelsize=7)
    axes[1].barh(range(len(rows)), np.maximum(kl.max(axis=1), 1e-6), color=colours)
    axes[1].set(xscale="log", xlabel="largest KL of any scale")
    axes[2].barh(range(len(rows)), [min(row.damage.psnr, 80) for row in rows], color=colours)
    axes[2].set(xlabel="picture PSNR, dB (up to 80)", xlim=(20, 80))
    if sensitivity.float_score is not None:
        axes[3].barh(range(len(rows)), [100 * (row.score or 0) for row in rows], color=colours)
        axes[3].axvline(100 * sensitivity.float_score, color="black", linewidth=0.8)
        axes[3].set(xlabel="all correct, %", xlim=(0, 100))
    figure.suptitle(f"{sensitivity.scheme}: each group quantised alone; blue: kept so, red: fell back", fontsize=10)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": ""})
    return buffer.getvalue()


def _fallen(sensitivity: Sensitivity) -> list[bool]:
    return [row.treatment != sensitivity.choice[row.group] for row in sensitivity.rows]
