"""The device memory of a generation, from a bundle's manifest and the header of its weights: the engine's own numbers.

Not in it: what the driver's context, cuBLASLt, cuDNN and the kernels' code take for themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from .blas import WORKSPACE
from .model import ModelPlan
from .session import Settings, plan_session
from .stages import plan_decoder, plan_text


@dataclass(frozen=True)
class Phase:
    """One phase of a generation: bytes of its weights, of its workspace, and of what lives through the phase besides."""

    weights: int
    workspace: int
    tensors: int

    @property
    def bytes(self) -> int:
        return self.weights + self.workspace + self.tensors


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device.

    Attributes:
        batch: pictures at a time.
        low_vram: only one phase's weights and workspace are there at a time.
        phases: by name, in the order they run.
        scratch: of cuBLASLt, always there.
        scale_loop: the parts of the scale loop's workspace; "scale" and "diffusion" share memory.
    """

    batch: int
    low_vram: bool
    phases: dict[str, Phase]
    scratch: int
    scale_loop: dict[str, int]

    @property
    def in_use(self) -> dict[str, int]:
        """Bytes in use in every phase of the first picture; without low_vram, what a phase has loaded stays."""
        weights = sum(phase.weights for phase in self.phases.values())
        kept, result = 0, {}
        for name, phase in self.phases.items():
            kept += phase.workspace
            result[name] = self.scratch + (phase.bytes if self.low_vram else weights + kept + phase.tensors)
        return result

    @property
    def peak_phase(self) -> str:
        return max(self.in_use, key=self.in_use.__getitem__)

    @property
    def peak(self) -> int:
        return self.in_use[self.peak_phase]

    def to_json(self) -> dict[str, Any]:
        phases = {name: {**vars(phase), "in_use": self.in_use[name]} for name, phase in self.phases.items()}
        return {**vars(self), "phases": phases, "peak_phase": self.peak_phase, "peak": self.peak}


def plan_memory(bundle: Bundle, batch: int = 1, low_vram: bool = False) -> MemoryPlan:
    """Of a generation with the model's own settings; nothing is loaded, and no GPU is needed."""
    model = ModelPlan(bundle)
    options = bundle.defaults
    session = plan_session(model, Settings(batch, options, options.diffusion_steps or model.spec.diffusion_steps, recorded=False))
    hidden, results, image = _tensors(model, batch)
    phases = {} if model.text is None else {"text encoder": Phase(model.text.bytes, plan_text(model.text.sizes, batch).bytes, hidden)}
    phases |= {
        "scale loop": Phase(model.generator.bytes, session.bytes, hidden + results),
        "decoder": Phase(model.decoder.bytes, plan_decoder(model, batch).bytes, hidden + results + image),
    }
    return MemoryPlan(batch, low_vram, phases, WORKSPACE, {name or "lasting": size for name, size in session.phases.items()})


def _tensors(model: ModelPlan, batch: int) -> tuple[int, int, int]:
    """Bytes of the text conditioning, of tokens and latent of all scales, and of the picture on its way to the host."""
    spec = model.spec
    hidden = batch * spec.context_tokens * spec.context_dim * np.dtype(model.dtype).itemsize
    latent = batch * spec.latent_channels * spec.grid**2 * 4
    tokens = sum(batch * side**2 * 8 for side in spec.patch_nums)
    return hidden, spec.scales * latent + tokens, batch * spec.image_size**2 * 3
