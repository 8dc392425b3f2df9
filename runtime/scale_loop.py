"""The autoregressive loop as a generator: one yield per scale gives progress, previews and cancellation.

Composes transformer, sampling, transition and residual diffusion. Knows nothing of text, files or pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .diffusion import ResidualDiffusion
from .engine import Array, Tensor
from .memory import HOST, Memory
from .noise import Float32, Noise
from .options import Options, top_k_of
from .sampling import Int64, choose, guide, keep_top_k, keep_top_p, scale_ratio, smooth_codes
from .spec import CODEBOOK, ModelSpec
from .timing import StageTimes
from .transformer import Conditioning, ScaleTransformer
from .transition import Transition


@dataclass(frozen=True)
class ScaleResult:
    """One finished scale: its number, its tokens [B, p²] int64 and the latent so far, f_hat [B, Z, G, G] float32, in any memory."""

    scale: int
    tokens: Tensor
    f_hat: Tensor


class ScaleLoop:
    """The engines of one model, ready to run any number of batches, one at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        transformer: ScaleTransformer,
        transition: Transition,
        diffusion: ResidualDiffusion,
        constants: dict[str, Array],
        memory: Memory = HOST,
    ) -> None:
        self.spec, self.transformer, self.transition, self.diffusion = spec, transformer, transition, diffusion
        self.memory, self.codebook = memory, constants[CODEBOOK]

    def run(self, conditioning: Conditioning, options: Options, noise: Noise, times: StageTimes) -> Iterator[ScaleResult]:
        """Yield every scale in turn; the last one's f_hat includes the diffusion residual, unless the options leave it out."""
        spec, batch = self.spec, conditioning.batch
        with times("context"):
            run, x = self.transformer.begin(conditioning)
        f_hat = self.transition.initial(batch)
        for scale in range(spec.scales):
            with times("transformer"):
                hidden, logits = run.step(scale, x)
            with times("sampling"):
                tokens, h = self.sample(scale, logits, batch, options, noise)
            if scale < spec.scales - 1:
                with times("transition"):
                    f_hat, x = self.transition.step(scale, h, f_hat)
            elif options.residual:
                with times("residual"):
                    f_hat = self.memory.download(f_hat) + h + self._residual(hidden, tokens, options, noise)
            else:
                with times("transition"):
                    f_hat = self.memory.download(f_hat) + h
            yield ScaleResult(scale, tokens, f_hat)

    def sample(self, scale: int, logits: Tensor, batch: int, options: Options, noise: Noise) -> tuple[Int64, Float32]:
        """logits [R, L, V] → tokens [B, p²] and codes h [B, Z, p, p]; every image on its own, so batches do not matter."""
        side, fetched = self.spec.patch_nums[scale], self.memory.download(logits)
        pairs = [self._sample_image(scale, *_rows(scale, fetched, j, batch), j, options, noise) for j in range(batch)]
        tokens = np.stack([index for index, _ in pairs])
        codes = np.stack([codes.T.reshape(-1, side, side) for _, codes in pairs])
        return tokens, np.ascontiguousarray(codes, dtype=np.float32)

    def _sample_image(
        self, scale: int, conditional: Float32, unconditional: Float32 | None, image: int, options: Options, noise: Noise
    ) -> tuple[Int64, Float32]:
        ratio, shape = scale_ratio(scale, self.spec.scales), (conditional.shape[0], conditional.shape[1])
        masked = guide(conditional, unconditional, options.cfg * ratio)
        keep_top_k(masked, top_k_of(options, scale))
        keep_top_p(masked, options.top_p)
        index = choose(masked, noise.token(image, scale, shape))
        if not options.smooth:
            return index, self.codebook[index]
        return index, smooth_codes(masked, noise.smooth(image, scale, shape), ratio, self.codebook)

    def _residual(self, hidden: Tensor, tokens: Int64, options: Options, noise: Noise) -> Float32:
        """The sampled residual as [B, Z, G, G]."""
        spec, batch = self.spec, tokens.shape[0]
        guidance = options.cfg * scale_ratio(spec.scales - 1, spec.scales)
        condition = self.diffusion.condition(hidden, tokens)
        residual = self.diffusion.sample(condition, batch, guidance, options.diffusion_steps or spec.diffusion_steps, noise)
        return residual.transpose(0, 2, 1).reshape(batch, -1, spec.grid, spec.grid)


def _rows(scale: int, logits: Float32, image: int, batch: int) -> tuple[Float32, Float32 | None]:
    """Conditional and unconditional logits of one image; scale 0 has the last context position's only."""
    if scale == 0:
        return logits[image, -1:], None
    return logits[image], logits[batch + image]
