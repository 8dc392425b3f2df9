"""How well the hybrid tokenizer gives pictures back: through its codes alone, and with the continuous residual."""

from __future__ import annotations

import numpy as np
import torch

from ..reference.hart import HartReference
from ..shapes.render import render
from ..verify.metrics import psnr, ssim
from .prompts import held_out_scenes


@torch.inference_mode()
def reconstruct(model: HartReference, count: int = 64, seed: int = 0) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM on rendered held-out scenes: `discrete_*` from the codes, `hybrid_*` from the latent."""
    size = model.patch_nums[-1] * model.vae.config.downsample
    device = model.transformer.head.weight.device
    rows: dict[str, list[float]] = {key: [] for key in ("discrete_psnr", "discrete_ssim", "hybrid_psnr", "hybrid_ssim")}
    for scene in held_out_scenes(count, seed):
        image = render([scene], size)
        latent = model.vae.encode(image.to(device))
        for name, f in (("discrete", model.vae.quantize.encode(latent)[2]), ("hybrid", latent)):
            picture = (model.vae.decode(f) * 0.5 + 0.5).cpu().numpy()
            rows[f"{name}_psnr"].append(psnr(picture, image.numpy()))
            rows[f"{name}_ssim"].append(ssim(picture, image.numpy()))
    return {key: float(np.mean(values)) for key, values in rows.items()}
