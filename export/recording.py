"""A recorded run: inputs, noise, settings and everything that was computed, as NumPy arrays by name.

Read from a folder (`config.json`, `inputs.npz`, `noise.npz`, `outputs.npz`) or made by running the reference.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hart_edge.runtime.engine import Array
from hart_edge.runtime.errors import CheckpointError
from hart_edge.runtime.noise import Noise, RecordedNoise

from .reference.hart import Context, HartReference, Settings

Arrays = dict[str, Array]


@dataclass
class Recording:
    """One run of the model.

    Attributes:
        context: [B, T, Ct] float32; position_ids: [B, T] int64.
        noise: its noise source.
        settings: cfg, smooth and so on.
        outputs: tensors by name; see docs/recordings.md.
    """

    context: Array
    position_ids: Array
    noise: Noise
    settings: Settings
    outputs: Arrays

    @property
    def batch(self) -> int:
        return int(self.context.shape[0])


def load_recording(folder: Path, call: Mapping[str, Any]) -> Recording:
    """Read a recorded run; `call` is the entry of its config.json. CheckpointError says what is missing."""
    inputs, noise, outputs = (_load(folder / f"{name}.npz") for name in ("inputs", "noise", "outputs"))
    missing = [name for name in ("context", "context_position_ids") if name not in inputs]
    if missing:
        raise CheckpointError(f"{folder / 'inputs.npz'} lacks {missing}.", "Expected a recorded run: see docs/recordings.md.")
    settings = Settings(cfg=float(call["cfg"]), smooth=bool(call["more_smooth"]), top_p=float(call.get("top_p", 0.0)))
    return Recording(inputs["context"], inputs["context_position_ids"], RecordedNoise(noise), settings, outputs)


def run_reference(model: HartReference, recording: Recording) -> Arrays:
    """Everything that the reference computes from a recording's inputs, noise and settings."""
    context = Context(torch.from_numpy(recording.context), torch.from_numpy(recording.position_ids))
    trace = model.generate(context, recording.noise, recording.settings)
    return {name: tensor.numpy() for name, tensor in trace.items()}


def run_encoder(model: HartReference, recording: Recording) -> Arrays:
    """The tokenizer's encoder on the recorded picture; empty when none was recorded."""
    if "image" not in recording.outputs:
        return {}
    trace = model.reconstruct(torch.from_numpy(recording.outputs["image"]))
    return {name: tensor.numpy() for name, tensor in trace.items()}


def _load(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Expected a recorded run: see docs/recordings.md.") from error
