"""Figures of a verification as curves: over scales, and over diffusion steps. Several prompts become one value each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..verify import Check

_CURVES: dict[str, tuple[str, str, str, Callable[[Sequence[float]], float]]] = {
    "logits cosine": ("transformer", "logits cosine", "scale", lambda values: float(np.min(values))),
    "logits KL": ("transformer", "logits KL", "scale", lambda values: float(np.mean(values))),
    "top-1 agreement": ("transformer", "top-1 agreement", "scale", lambda values: float(np.mean(values))),
    "diffusion error": ("residual_step", "prediction relative error", "step", lambda values: float(np.mean(values))),
}
"""Curve → stage, metric, axis, how the values of several prompts become one."""


def series(checks: Sequence[Check], scales: int) -> dict[str, Any]:
    """Every curve, the decoder's PSNR, and where tokens first flip."""
    curves = {name: _curve(checks, *how) for name, how in _CURVES.items()}
    flips = [check.where for check in checks if check.stage == "pipeline" and check.metric == "flip gap"]
    first = [int(match[1]) if (match := re.search(r"scale (\d+)", where)) else None for where in flips]
    return {
        **curves,
        "decoder PSNR dB": min((check.value for check in checks if check.metric == "decoder PSNR dB"), default=None),
        "first flip": min((scale for scale in first if scale is not None), default=None),
        "token agreement": _mean([check.value for check in checks if check.metric == "token agreement"]),
        "scales": scales,
    }


def _curve(checks: Sequence[Check], stage: str, metric: str, axis: str, reduce: Callable[[Sequence[float]], float]) -> list[float]:
    found: dict[int, list[float]] = {}
    for check in checks:
        match = re.fullmatch(rf"{axis} (\d+)", check.where)
        if check.stage == stage and check.metric == metric and match:
            found.setdefault(int(match[1]), []).append(check.value)
    return [reduce(found[key]) for key in sorted(found)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
