"""Checks without running an engine: file hashes against the manifest, stored weights against the checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hart_edge.runtime.bundle import WEIGHTS, Bundle

from ..engines import constants, engine_builders
from ..reference.hart import HartReference
from ..reference.text import TextConditioner
from ..stored import Stored
from .checks import Report
from .gates import NONE_DIFFERS

# Rounding allowed for tensors that the exporter computes (level embeddings, baked keys): relative, and of the largest value.
_COMPUTED = {"fp32": (1e-4, 1e-6), "fp16": (2e-3, 1e-3)}


def check_files(bundle: Bundle, report: Report) -> None:
    """Every file of the manifest, with its SHA-256."""
    damaged = bundle.damage()
    report.add("files", "files", "files that differ from the manifest", len(damaged), NONE_DIFFERS, "; ".join(damaged.values()))


def check_weights(bundle: Bundle, model: HartReference, text: TextConditioner | None, report: Report) -> None:
    """Every stored weight: exactly the checkpoint's value in the bundle's precision, 8-bit ones up to the step between two
    neighbours; computed tensors up to rounding."""
    precision = bundle.manifest.floats
    try:
        with safe_open(bundle.root / WEIGHTS, framework="pt") as stored:
            keys = set(stored.keys())
            fixed = {name: (tensor, name.endswith("codebook")) for name, tensor in constants(model, precision).items()}
            _compare("constants", fixed, stored, keys, precision, report)
            for name, build in engine_builders(model, text, precision).items():
                module = build()
                exact = {key for key, _ in module.named_parameters()}
                tensors = {f"{name}.{key}": (value, key in exact) for key, value in module.state_dict().items()}
                _compare(name, tensors, stored, keys, precision, report)
    except (SafetensorError, OSError) as error:
        report.add("files", "weights", f"{WEIGHTS} unreadable", 1, NONE_DIFFERS, str(error))


def _compare(stage: str, tensors: dict[str, tuple[Tensor, bool]], stored: Any, keys: set[str], precision: str, report: Report) -> None:
    wrong: dict[str, int] = {}
    for name, (tensor, exact) in tensors.items():
        count = (
            _differing(Stored.read(name, keys, stored.get_tensor), tensor.detach(), exact, precision) if name in keys else tensor.numel()
        )
        if count:
            wrong[name] = count
    where = ", ".join(f"{name} ({count} of {tensors[name][0].numel()})" for name, count in list(wrong.items())[:4])
    report.add(stage, "weights", "weights that differ from the checkpoint", sum(wrong.values()), NONE_DIFFERS, where)


def _differing(stored: Stored, want: Tensor, exact: bool, precision: str) -> int:
    """Number of values that differ by more than is allowed; all of them when the shapes differ."""
    if stored.value.shape != want.shape:
        return want.numel()
    if exact:
        return stored.differing(want)
    relative, of_largest = _COMPUTED[precision]
    a, b = stored.value.numpy().astype(np.float64), want.numpy().astype(np.float64)
    return int(np.sum(~(np.abs(a - b) <= relative * np.abs(b) + of_largest * np.max(np.abs(b), initial=0))))
