"""HART as a whole, in PyTorch: context in, picture out, every intermediate tensor kept by name.

The names of the trace are those of the recorded runs (`idx_3`, `f_hat_3`, `diff_out_0`, …), so a trace, a recording
and an engine's output can be compared without translation. Noise is injected through the runtime's `Noise` protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hart_edge.runtime.noise import Noise
from hart_edge.runtime.options import Options

from . import sampling
from .autoencoder import HybridAutoencoder
from .config import AutoencoderConfig, TransformerConfig, check_pair
from .diffusion import RESIDUAL_GAIN, Schedule
from .embeddings import image_angles, text_angles
from .transformer import HartTransformer, LayerCache, rotary

Trace = dict[str, Tensor]


class Clock(Protocol):
    def __call__(self, stage: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Settings:
    """What one run may vary; the defaults are the published ones, the meanings those of `Options`."""

    cfg: float = 4.5
    smooth: bool = True
    top_k: int | None = None
    top_p: float = 0.0
    diffusion_steps: int | None = None
    residual: bool = True

    @classmethod
    def of(cls, options: Options) -> Settings:
        """The same settings as the runtime's."""
        return cls(options.cfg, options.smooth, options.top_k, options.top_p, options.diffusion_steps, options.residual)


@dataclass
class Context:
    """Text conditioning of B prompts: hidden states [B, T, Ct] and position ids [B, T]."""

    hidden: Tensor
    position_ids: Tensor


class HartReference(nn.Module):
    def __init__(self, transformer: TransformerConfig, autoencoder: AutoencoderConfig) -> None:
        super().__init__()
        check_pair(transformer, autoencoder)
        self.transformer = HartTransformer(transformer, autoencoder)
        self.vae = HybridAutoencoder(autoencoder)

    @property
    def patch_nums(self) -> tuple[int, ...]:
        return self.vae.config.patch_nums

    @torch.inference_mode()
    def generate(self, context: Context, noise: Noise, settings: Settings, clock: Clock = lambda stage: nullcontext()) -> Trace:
        """Run all scales, the residual diffusion and the decoder; returns the trace, `image` [B, 3, H, W] in 0…1.

        Without `settings.residual` the trace has no `diffusion_*` and no `diff_*`.
        """
        trace: Trace = {}
        for _ in self.scales(context, noise, settings, trace, clock):
            pass
        with clock("decoder"):
            trace["decoded"] = self.vae.decode(trace["f_hat_final"])
        trace["image"] = trace["decoded"] * 0.5 + 0.5
        return trace

    def scales(self, context: Context, noise: Noise, settings: Settings, trace: Trace, clock: Clock) -> Iterator[int]:
        """The scale loop; fills the trace and yields after every scale."""
        run = _Run(self, context, noise, settings, trace, clock)
        for scale in range(len(self.patch_nums)):
            run.scale(scale)
            yield scale

    @torch.inference_mode()
    def reconstruct(self, image: Tensor) -> Trace:
        """image [B, 3, H, W] in 0…1 → latent, indices per scale, residual, and the decoded latent."""
        latent = self.vae.encode(image)
        indices, residual, _ = self.vae.quantize.encode(latent)
        trace = {"encoder_latent": latent, "encoder_residual": residual, "roundtrip": self.vae.decode(latent)}
        return trace | {f"encoder_idx_{i}": index for i, index in enumerate(indices)}


class _Run:
    """State of one generation: caches, f_hat, the next scale's input."""

    def __init__(self, model: HartReference, context: Context, noise: Noise, settings: Settings, trace: Trace, clock: Clock) -> None:
        self.model, self.noise, self.settings, self.trace, self.clock = model, noise, settings, trace, clock
        self.t = model.transformer
        self.batch = context.hidden.shape[0]
        with clock("context"):
            self._embed(context)
        self.caches: list[LayerCache] = self.t.new_cache()
        grid, channels = model.patch_nums[-1], model.vae.config.z_channels
        self.f_hat = torch.zeros(self.batch, channels, grid, grid, device=self.x.device)

    def _embed(self, context: Context) -> None:
        both = torch.cat([context.hidden, torch.zeros_like(context.hidden)])
        self.positions = torch.cat([context.position_ids, torch.zeros_like(context.position_ids)])
        e = self.t.embed_context(both)
        self.head_scale, self.head_shift = self.t.head_nm.modulation(e)
        self.x = e + self.t.level(0)
        self.trace |= {"head_scale": self.head_scale, "head_shift": self.head_shift}

    def scale(self, i: int) -> None:
        scales, last = len(self.model.patch_nums), i == len(self.model.patch_nums) - 1
        self.trace[f"x_{i}"] = self.x
        with self.clock("transformer"):
            hidden, logits = self._transform(i)
        self.trace |= {f"hidden_{i}": hidden, f"logits_{i}": logits}
        with self.clock("sampling"):
            index, h = self._sample(i, logits, sampling.ratio(i, scales))
        with self.clock("residual" if last and self.settings.residual else "transition"):
            self._finish(hidden, index, h, i) if last else self._transition(i, h)

    def _transform(self, i: int) -> tuple[Tensor, Tensor]:
        head_dim = self.t.config.head_dim
        grid = self.model.patch_nums[-1]
        offset = self.positions[:, -1]
        angles = text_angles(self.positions, head_dim) if i == 0 else image_angles(self.model.patch_nums[i], grid, offset, head_dim)
        hidden = self.t.run_blocks(self.x, rotary(*angles), self.caches)
        return hidden, self.t.logits(hidden, self.head_scale, self.head_shift)

    def _sample(self, i: int, logits: Tensor, r: float) -> tuple[Tensor, Tensor]:
        settings, side = self.settings, self.model.patch_nums[i]
        conditional, unconditional = logits.chunk(2)
        guided = sampling.guide(conditional, unconditional, settings.cfg * r)
        guided = guided[:, -1:] if i == 0 else guided
        top_k = sampling.default_top_k(i) if settings.top_k is None else settings.top_k
        masked = sampling.truncate(guided, top_k, settings.top_p)
        index = sampling.choose(masked, self._noise(self.noise.token, i, shape=masked.shape))
        self.trace |= {f"cfg_logits_{i}": guided, f"idx_{i}": index, f"topk_{i}": torch.tensor(top_k)}
        if not settings.smooth:
            return index, self.model.vae.quantize.lookup(index, side)
        gumbel = self._noise(self.noise.smooth, i, shape=masked.shape)
        codes = sampling.smooth_codes(masked, gumbel, r, self.model.vae.quantize.embedding.weight)
        self.trace[f"tau_{i}"] = torch.tensor(sampling.temperature(r))
        return index, codes.transpose(1, 2).reshape(self.batch, -1, side, side)

    def _transition(self, i: int, h: Tensor) -> None:
        quantize = self.model.vae.quantize
        self.f_hat = self.f_hat + quantize.upsample(h, i)
        pooled = quantize.pool(self.f_hat, i + 1)
        tokens = self.t.word_embed(pooled.flatten(2).transpose(1, 2)) + self.t.level(i + 1)
        self.x = torch.cat([tokens, tokens])
        self.trace |= {f"h_{i}": h, f"f_hat_{i}": self.f_hat, f"next_{i}": pooled}

    def _finish(self, hidden: Tensor, index: Tensor, h: Tensor, i: int) -> None:
        latent = self.f_hat + h
        if self.settings.residual:
            latent = latent + self._residual(hidden, index, i).transpose(1, 2).reshape(h.shape)
        self.trace |= {"h_last": h, "f_hat_final": latent}

    def _residual(self, hidden: Tensor, index: Tensor, i: int) -> Tensor:
        """The sampled residual, [B, G², Z]."""
        word = self.t.word_embed(self.model.vae.quantize.embedding(index))
        condition = self.t.decoder_norm(hidden + torch.cat([word, word])).flatten(0, 1)
        guidance = sampling.guidance(self.settings.cfg, i, len(self.model.patch_nums))
        residual = self._diffuse(condition, guidance)
        self.trace |= {"diffusion_cond": condition, "diffusion_cfg": torch.tensor(guidance), "diffusion_out": residual}
        return residual.chunk(2)[0].view(self.batch, -1, residual.shape[-1])

    def _diffuse(self, condition: Tensor, guidance: float) -> Tensor:
        """Both rows of the guided pair are carried, as the published sampler does; only the first is used."""
        head = self.t.diffloss
        steps = self.settings.diffusion_steps or self.t.config.num_sampling_steps
        schedule = Schedule.cosine(steps)
        shape = (self.batch, condition.shape[0] // 2 // self.batch, head.channels)
        x = self._noise(self.noise.diffusion_init, shape=shape).flatten(0, 1).repeat(2, 1)
        for k in range(steps):
            reverse, t = steps - 1 - k, int(schedule.timesteps[steps - 1 - k])
            first = x.chunk(2)[0]
            prediction = head.guided(head.predict(first, t, condition), guidance)
            self.trace |= {f"diff_x_{k}": first, f"diff_t_{k}": torch.tensor([t]), f"diff_out_{k}": prediction}
            noise = self._noise(self.noise.diffusion_step, k, shape=shape).flatten(0, 1).repeat(2, 1)
            x = schedule.step(reverse, x, *prediction.split(head.channels, dim=1), noise)
        return x * RESIDUAL_GAIN

    def _noise(self, draw: Callable[..., np.ndarray | Tensor], *index: int, shape: tuple[int, ...]) -> Tensor:
        """One kind of noise for the whole batch, [B, rows, columns], from arrays or tensors."""
        images = [torch.as_tensor(draw(image, *index, tuple(shape[1:]))) for image in range(self.batch)]
        return torch.stack(images).to(self.x.device)
