"""What a caller may vary in one generation, checked once. Knows nothing of engines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InputError

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Options:
    """Settings of one generation; the defaults are those of the published HART sampler.

    Attributes:
        cfg: guidance strength at the end of the scale schedule; 0 switches guidance off.
        top_k: keep the k likeliest codes at every scale; None takes HART's schedule (600, from scale 7 on 300);
            a value at or above the codebook size keeps all.
        top_p: nucleus kept after top-k, 0 < p < 1; 0 and 1 switch it off.
        smooth: mix codes by Gumbel-softmax (`more_smooth`) in place of the chosen code alone.
        diffusion_steps: DDPM steps of the residual diffusion, 1 to 1000; None takes the model's own.
    """

    cfg: float = 4.5
    top_k: int | None = None
    top_p: float = 0.0
    smooth: bool = True
    diffusion_steps: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.cfg) or self.cfg < 0:
            raise InputError(f"cfg is {self.cfg}; expected a finite number of 0 or more.", "Guidance of 1.5 to 6 is usual.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top-k is {self.top_k}; expected 1 or more.", "Leave it out for HART's own schedule.")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; expected 0 to 1.", "0 switches it off.")
        if self.diffusion_steps is not None and not 1 <= self.diffusion_steps <= 1000:
            raise InputError(f"diffusion steps is {self.diffusion_steps}; expected 1 to 1000.", "The models are trained for 8.")


def check_seed(seed: int) -> int:
    """A seed keys the noise generator and must fit 64 unsigned bits."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed}; expected 0 to {MAX_SEED} (64 bits, not negative).", "Choose a smaller seed.")
    return seed


def top_k_of(options: Options, scale: int) -> int:
    """The top-k in force at a scale: HART keeps 600 codes, and 300 from scale 7 on."""
    if options.top_k is not None:
        return options.top_k
    return 600 if scale < 7 else 300
