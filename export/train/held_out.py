"""Measures of stage 2 on held-out pictures: cross-entropy, and how much of the residual the diffusion gives back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.autoencoder import HybridAutoencoder
from ..reference.diffusion import RESIDUAL_GAIN, Schedule
from ..reference.transformer import HartTransformer
from .image_loss import psnr
from .joint import Joint
from .quantize import Codes, encode
from .sequence import Predictions, forward
from .text import encode_text


@torch.no_grad()
def measure(model: Joint, vae: HybridAutoencoder, image: Tensor, ids: Tensor, *, seed: int) -> dict[str, float]:
    """image [B, 3, H, W] in 0…1, ids [B, T]; teacher forcing with true codes, all tokens, float32.

    psnr_codes is of the true codes alone, psnr_diffused of those with a sampled residual, psnr_latent of the latent.
    """
    codes = encode(vae.quantize, latent := vae.encode(image))
    out = forward(model.transformer, *encode_text(model.text, ids), codes.inputs)
    each = F.cross_entropy(out.logits.transpose(1, 2), torch.cat(codes.targets, dim=1), reduction="none")
    code = vae.quantize.embedding(codes.targets[-1])
    before = latent - _grid(codes.residual, latent)
    g = torch.Generator(image.device).manual_seed(seed)
    added = _sample(model.transformer, out, code, vae.config.z_channels, g).view_as(code) * RESIDUAL_GAIN
    pictures = {"codes": code, "diffused": code + added, "latent": codes.residual}
    scores = {f"psnr_{name}": float(psnr(vae.decode(before + _grid(rows, latent)), 2 * image - 1)) for name, rows in pictures.items()}
    entropy = {"held_ce": float(each.mean()), "held_ce_last": float(each[:, -out.lengths[-1] :].mean())}
    return entropy | scores | _residual(codes, code, added)


def _grid(rows: Tensor, like: Tensor) -> Tensor:
    """[B, G², Z] → [B, Z, G, G]."""
    return rows.transpose(1, 2).reshape(like.shape)


def _residual(codes: Codes, code: Tensor, added: Tensor) -> dict[str, float]:
    """Error of the sampled residual relative to the residual's own size; below 1 it helps."""
    missing = codes.residual - code
    return {"residual_error": float((missing - added).square().mean().sqrt() / missing.square().mean().sqrt())}


def _sample(model: HartTransformer, out: Predictions, code: Tensor, channels: int, g: torch.Generator) -> Tensor:
    """The residual diffusion without guidance: code [B, G², Z] → [B·G², Z]."""
    z = model.decoder_norm(out.hidden[:, -out.lengths[-1] :] + model.word_embed(code)).flatten(0, 1)
    schedule = Schedule.cosine(model.config.num_sampling_steps)
    x = torch.randn(len(z), channels, device=z.device, generator=g)
    for k in reversed(range(len(schedule.timesteps))):
        t = torch.full((len(z),), int(schedule.timesteps[k]), device=z.device)
        eps, v = model.diffloss.net(x, t, z).chunk(2, dim=1)
        x = schedule.step(k, x, eps, v, torch.randn(x.shape, device=x.device, generator=g))
    return x
