"""What quantisation does to a model, with everything else held still: a recorded run of the float engines is replayed.

Text and transformer get the recorded inputs of every scale, so that a changed token cannot hide behind another picture; the
residual diffusion and the decoder go on from the recorded tokens. What comes before the first changed engine is not run again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hart_edge.export.verify import metrics
from hart_edge.runtime.engine import Array
from hart_edge.runtime.noise import Noise, PhiloxNoise
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.sampling import scale_ratio
from hart_edge.runtime.transformer import Conditioning

BEFORE_TOKENS = {"text_encoder", "context", "transformer"}


@dataclass
class Recorded:
    """One prompt's run: inputs and logits of every scale, and what residual diffusion and decoder start from."""

    prompt: str
    noise: Noise
    conditioning: Conditioning
    x: list[Array] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)
    tokens: Array = field(default_factory=lambda: np.empty(0))
    codes: Array = field(default_factory=lambda: np.empty(0))  # f_hat of the last scale without its residual
    hidden: Array = field(default_factory=lambda: np.empty(0))
    latent: Array = field(default_factory=lambda: np.empty(0))
    picture: Array = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Damage:
    """How far a replay is from the recording, over all prompts.

    Attributes:
        kl: mean KL divergence of the logits by scale, nats.
        cosine: smallest cosine of any token's logits, by scale.
        top1: share of tokens with the same likeliest code, by scale.
        latent: mean relative error of the final latent.
        psnr: of the pictures, dB, from their mean squared error.
    """

    kl: tuple[float, ...]
    cosine: tuple[float, ...]
    top1: tuple[float, ...]
    latent: float
    psnr: float


def record(pipe: Pipeline, prompts: Sequence[str]) -> list[Recorded]:
    """Run every prompt (seed = position + 1) with the model's own settings and the residual diffusion."""
    return [_record(pipe, prompt, number + 1) for number, prompt in enumerate(prompts)]


def _record(pipe: Pipeline, prompt: str, seed: int) -> Recorded:
    loop, options, last = pipe.loop, pipe.defaults, pipe.spec.scales - 1
    made = Recorded(prompt, PhiloxNoise([seed]), pipe.encode_text([prompt]))
    run, x = loop.transformer.begin(made.conditioning)
    f_hat = loop.transition.initial(1)
    for scale in range(pipe.spec.scales):
        hidden, logits = run.step(scale, x)
        made.x.append(np.asarray(x))
        made.logits.append(np.asarray(logits))
        tokens, h = loop.sample(scale, logits, 1, options, made.noise)
        if scale < last:
            f_hat, x = loop.transition.step(scale, h, f_hat)
    made.tokens, made.codes, made.hidden = tokens, np.asarray(f_hat) + h, np.asarray(hidden)
    made.latent = _latent(pipe, made, made.hidden)
    made.picture = pipe.decode(made.latent)
    return made


def _latent(pipe: Pipeline, made: Recorded, hidden: Array) -> Array:
    """The final latent [1, Z, G, G]: the codes and the residual that the diffusion draws for the recorded tokens."""
    diffusion, spec = pipe.loop.diffusion, pipe.spec
    guidance = pipe.defaults.cfg * scale_ratio(spec.scales - 1, spec.scales)
    steps = pipe.defaults.diffusion_steps or spec.diffusion_steps
    residual = diffusion.sample(diffusion.condition(hidden, made.tokens), 1, guidance, steps, made.noise)
    return made.codes + residual.transpose(0, 2, 1).reshape(made.codes.shape)


def replay(pipe: Pipeline, recorded: Sequence[Recorded], changed: Iterable[str]) -> Damage:
    """Run again what depends on the changed engines."""
    names = set(changed)
    logits, latents, pictures = zip(*(_replay(pipe, made, names) for made in recorded), strict=True)
    pairs = [[(own[scale], made.logits[scale]) for own, made in zip(logits, recorded, strict=True)] for scale in range(pipe.spec.scales)]
    errors = [np.mean((own.astype(np.float64) - made.picture) ** 2) for own, made in zip(pictures, recorded, strict=True)]
    mse = float(np.mean(errors)) / 255**2
    return Damage(
        kl=tuple(float(np.mean([metrics.kl_divergence(*pair) for pair in scale])) for scale in pairs),
        cosine=tuple(min(metrics.cosine(*pair) for pair in scale) for scale in pairs),
        top1=tuple(float(np.mean([metrics.top1_agreement(*pair) for pair in scale])) for scale in pairs),
        latent=float(np.mean([metrics.relative_error(own, made.latent) for own, made in zip(latents, recorded, strict=True)])),
        psnr=200.0 if mse == 0 else -10 * math.log10(mse),
    )


def _replay(pipe: Pipeline, made: Recorded, changed: set[str]) -> tuple[list[Array], Array, Array]:
    logits, hidden, latent = made.logits, made.hidden, made.latent
    if changed & BEFORE_TOKENS:
        logits, hidden = _transform(pipe, made, changed)
    if changed - {"decoder"}:
        latent = _latent(pipe, made, hidden)
    return logits, latent, pipe.decode(latent)


def _transform(pipe: Pipeline, made: Recorded, changed: set[str]) -> tuple[list[Array], Array]:
    conditioning = pipe.encode_text([made.prompt]) if "text_encoder" in changed else made.conditioning
    run, x = pipe.loop.transformer.begin(conditioning)
    logits = []
    for scale in range(pipe.spec.scales):
        hidden, own = run.step(scale, x if scale == 0 else made.x[scale])
        logits.append(np.asarray(own))
    return logits, np.asarray(hidden)
