"""Frozen facts about a model and the names that exporter and runtime share. Knows nothing of files or engines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import BundleError

ENGINES = ("text_encoder", "context", "transformer", "transition", "residual_condition", "residual_step", "decoder")
"""Every engine a bundle may hold, in the order of use; a bundle made without a text model lacks the first."""

REEXPORT = "Export the bundle again with `hart-edge export`."

CODEBOOK = "constants.codebook"  # [V, Z] float32
UNCONDITIONAL_K = "constants.unconditional_k"  # [depth, H, D] in the bundle's precision; the same for every position
UNCONDITIONAL_V = "constants.unconditional_v"


def cache_names(layer: int) -> tuple[str, str, str, str]:
    """Binding names of one layer's cache: k in, v in, k out, v out."""
    return f"k_cache_{layer}", f"v_cache_{layer}", f"k_next_{layer}", f"v_next_{layer}"


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of one exported model.

    Attributes:
        patch_nums: side of every scale's token grid, increasing; S entries, the last is G.
        phi_index: for every scale but the last, which φ convolution the transition uses.
        context_tokens, context_dim: T and Ct of the text conditioning.
        depth, width, heads: layers, C and H of the transformer.
        codebook_size, latent_channels: V and Z.
        diffusion_width, diffusion_steps: width of the diffusion MLP, default number of sampling steps.
        downsample: pixels per latent cell along one side.
    """

    patch_nums: tuple[int, ...]
    phi_index: tuple[int, ...]
    context_tokens: int
    context_dim: int
    depth: int
    width: int
    heads: int
    codebook_size: int
    latent_channels: int
    diffusion_width: int
    diffusion_steps: int
    downsample: int

    def __post_init__(self) -> None:
        lists = {"patch_nums": self.patch_nums, "phi_index": self.phi_index}
        numbers = {f.name: (getattr(self, f.name),) for f in fields(self) if f.name not in lists}
        for name, values in {**lists, **numbers}.items():
            smallest = 0 if name == "phi_index" else 1
            if not isinstance(values, tuple) or not all(type(value) is int and value >= smallest for value in values):
                raise BundleError(f"model facts: {name} = {getattr(self, name)!r}; expected whole numbers of {smallest} or more.", REEXPORT)
        scales = self.patch_nums
        if len(scales) < 2 or any(a >= b for a, b in itertools.pairwise(scales)):
            raise BundleError(f"model facts: patch_nums must be increasing with two scales or more, not {list(scales)}.", REEXPORT)
        if len(self.phi_index) != len(scales) - 1:
            raise BundleError(f"model facts: phi_index needs {len(scales) - 1} entries, not {len(self.phi_index)}.", REEXPORT)

    @property
    def scales(self) -> int:
        return len(self.patch_nums)

    @property
    def grid(self) -> int:
        """Side G of the latent, which is the last scale's side."""
        return self.patch_nums[-1]

    @property
    def image_size(self) -> int:
        """Side of the picture in pixels."""
        return self.grid * self.downsample

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def input_tokens(self, scale: int) -> int:
        """Tokens that enter the transformer at a scale: the T context tokens at scale 0, else p²."""
        return self.context_tokens if scale == 0 else self.patch_nums[scale] ** 2

    @property
    def cache_length(self) -> int:
        """Positions of the KV cache: all tokens that ever enter the transformer."""
        return sum(self.input_tokens(i) for i in range(self.scales))

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_json`; BundleError names missing and unknown keys."""
        names = {f.name for f in fields(cls)}
        if set(raw) != names:
            raise BundleError(f"model facts: missing {sorted(names - set(raw))}, unknown {sorted(set(raw) - names)}.", REEXPORT)
        facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(**facts)
