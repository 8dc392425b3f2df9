"""What a caller may vary in one generation, checked once. Knows nothing of engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .errors import InputError

MAX_SEED = 2**64 - 1
MAX_CFG = 1000  # far beyond use; keeps float32 logits finite


@dataclass(frozen=True)
class Options:
    """Settings of one generation; the defaults are those of the published HART sampler.

    Attributes:
        cfg: guidance strength at the end of the scale schedule, 0 to 1000; 0 switches guidance off.
        top_k: keep the k likeliest codes at every scale; None takes HART's schedule (600, from scale 7 on 300);
            a value at or above the codebook size keeps all.
        top_p: nucleus kept after top-k, 0 < p < 1; 0 and 1 switch it off.
        smooth: mix codes by Gumbel-softmax (`more_smooth`) in place of the chosen code alone.
        diffusion_steps: DDPM steps of the residual diffusion, 1 to 1000; None takes the model's own.
        residual: add the residual diffusion's latent; False draws from the codes alone and does not run its engines.
    """

    cfg: float = 4.5
    top_k: int | None = None
    top_p: float = 0.0
    smooth: bool = True
    diffusion_steps: int | None = None
    residual: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.cfg <= MAX_CFG:
            raise InputError(f"cfg is {self.cfg}; expected 0 to {MAX_CFG}.", "Guidance of 1.5 to 6 is usual.")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise InputError(f"top-k is {self.top_k}; expected a whole number of 1 or more.", "Leave it out for HART's own schedule.")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; expected 0 to 1.", "0 switches it off.")
        steps = self.diffusion_steps
        if steps is not None and (type(steps) is not int or not 1 <= steps <= 1000):
            raise InputError(f"diffusion steps is {steps}; expected a whole number from 1 to 1000.", "The models are trained for 8.")


def parse_options(raw: Mapping[str, Any]) -> Options:
    """Options from a parsed JSON object that may leave fields out; InputError names an unknown key or a bad value."""
    defaults = {f.name: f.default for f in fields(Options)}
    for key, value in raw.items():
        if key not in defaults:
            raise InputError(f"unknown setting {key!r}; expected some of {', '.join(defaults)}.", "Correct or remove the key.")
        kinds: tuple[type, ...] = (bool,) if isinstance(defaults[key], bool) else (int, float)
        if defaults[key] is None:
            kinds = (int, type(None))
        if type(value) not in kinds:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise InputError(f"{key} is {value!r}; expected {expected}.", "Correct the value.")
    return Options(**raw)


def override(defaults: Options, **given: Any) -> Options:
    """`defaults` with every given value that is not None in its place."""
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def check_seed(seed: int) -> int:
    """A seed keys the noise generator and must fit 64 unsigned bits."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed}; expected a whole number from 0 to {MAX_SEED} (64 bits, not negative).", "Choose a smaller seed.")
    return int(seed)


def top_k_of(options: Options, scale: int) -> int:
    """The top-k in force at a scale: HART keeps 600 codes, and 300 from scale 7 on."""
    if options.top_k is not None:
        return options.top_k
    return 600 if scale < 7 else 300
