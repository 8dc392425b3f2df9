"""Stage 1: trains the hybrid image tokenizer.

    python -m hart_edge.export.train.tokenizer --out DIR [--minutes 9] [--session 9]

The decoder sees the continuous latent for one half of the pictures and the sum of the codes for the other half
(alternating training, HART arXiv 2410.10812). OUT/tokenizer/ is the published folder, averaged weights.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reference.autoencoder import HybridAutoencoder
from ..reference.diffusion import RESIDUAL_GAIN
from . import command
from .assemble import read_tokenizer, write_part
from .data import Batch, Source, make_batch
from .graphs import Metrics, StepGraphs
from .image_loss import image_loss, psnr
from .optim import Average, adamw, backward, descend, groups, learning_rate
from .pool import Pool
from .quantize import CodebookCare, gain_of, quantise
from .sizes import Size

CODEBOOK_FACTOR = 5.0  # on the learning rate: codes have to follow the latents
RESTARTS_UNTIL = 0.6  # of the stage; after it the codebook settles
EVALUATED = 64  # held-out pictures


class TokenizerTrainer:
    """The autoencoder, its optimiser and its average."""

    def __init__(self, size: Size, device: torch.device, *, source: Source, options: Namespace) -> None:
        torch.manual_seed(options.seed)
        self.size, self.source, self.options, self.device = size, source, options, device
        model = HybridAutoencoder(size.autoencoder_config) if options.init is None else read_tokenizer(options.init, size).train()
        self.model = trainable(model, options.part).to(device, memory_format=torch.channels_last)
        self.average = Average(self.model, options.ema)
        codebook = self.model.quantize.embedding.weight
        rest = [g | {"params": [p for p in g["params"] if p is not codebook]} for g in groups(self.model, 0.0)]
        self.optimizer = adamw([*rest, {"params": [codebook], "weight_decay": 0.0, "factor": CODEBOOK_FACTOR}], options.lr, (0.9, 0.95))
        self.care = CodebookCare(len(codebook), device)
        self.generator = torch.Generator(device)
        compiled = torch.compile if options.compile else lambda f: f
        self.encode, self.decode = compiled(self.model.encode), compiled(self._decode)
        self.pool = Pool(self._pictures, options.pool if options.reuse > 1 else 0)
        self.learn = StepGraphs(self._learn, self.generator, options.graphs)
        self.cells: list[Tensor] = []  # of the last step, per scale [B·p², Z]
        self.held_out: Tensor | None = None

    def _decode(self, f: Tensor) -> Tensor:
        """Without the clamp of `HybridAutoencoder.decode`, which would stop gradients."""
        return self.model.decoder(self.model.post_quant_conv(f))

    def prepare(self, batches: Iterator[Batch]) -> None:
        self.pool.fill(batches)

    def step(self, batch: Batch, step: int, progress: float) -> Metrics:
        options, g = self.options, self.generator.manual_seed(self.options.seed * 1_000_003 + step)
        (picture,) = self.pool.draw(batch, options.batch, g)
        if step == 0 and options.init is None:
            self._seed_codebook(picture, g)
        metrics = self.learn("step", picture)
        descend([self.optimizer], self.model, self.average, learning_rate(options.lr, step, progress, options.warmup), step)
        if options.part == "all" and step % 50 == 0 and progress <= RESTARTS_UNTIL:
            self._restart_codes()
        return metrics

    def _learn(self, picture: Tensor) -> Metrics:
        """Loss and gradients of pictures [B, 3, H, W] uint8."""
        options, g = self.options, self.generator
        image = (picture.float() / 255).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            latent = self.encode(image).float()
        code = quantise(self.model.quantize, latent, options.beta)
        with self.autocast():
            decoded = self.decode(self._decoder_input(latent, code.f_hat, code.rest, g)).float()
        pixels = image_loss(decoded, 2 * image - 1)
        over = torch.relu(code.rest.abs() - options.limit).square().mean()
        loss = pixels + options.vq * code.loss + options.penalty * over
        norm = backward(loss, self.model)
        self.care.observe(code.indices)
        self.cells = code.cells
        inside = (code.rest.abs() < RESIDUAL_GAIN).float().mean()
        rms = code.rest.square().mean().sqrt()
        return {"loss": loss, "image": pixels, "vq": code.loss, "rest_rms": rms, "inside": inside, "grad": norm}

    def _pictures(self, batch: Batch) -> tuple[Tensor]:
        """What the pool keeps: rendered, 8 bits a channel."""
        return ((self.render(batch) * 255 + 0.5).clamp(0, 255).to(torch.uint8),)

    def _decoder_input(self, latent: Tensor, f_hat: Tensor, rest: Tensor, g: torch.Generator) -> Tensor:
        """Each picture's continuous latent, a little noisy, or its codes; at random."""
        draw = {"device": self.device, "generator": g}
        noise = torch.randn(latent.shape, **draw) * (self.options.noise * rest.detach().square().mean().sqrt())
        continuous = torch.rand(len(latent), 1, 1, 1, **draw) < self.options.continuous
        return torch.where(continuous, latent + noise, f_hat)

    @torch.no_grad()
    def _seed_codebook(self, picture: Tensor, g: torch.Generator) -> None:
        """Start from the data: all codes onto cells of the first batch, twice (the first pass has no residuals yet)."""
        weight = self.model.quantize.embedding.weight
        with self.autocast():
            latent = self.encode(picture.float() / 255).float()
        for _ in range(2):
            cells = quantise(self.model.quantize, latent, 0.0).cells
            self.care.restart(weight.data, cells, g, threshold=torch.inf)
        self.average.module.quantize.embedding.weight.copy_(weight.data)

    def _restart_codes(self) -> None:
        """Unused codes onto cells of the last step, in the average and in the optimiser's moments too."""
        weight, average = self.model.quantize.embedding.weight, self.average.module.quantize.embedding.weight
        moved = self.care.restart(weight.data, self.cells, self.generator)[:, None]
        average.copy_(torch.where(moved, weight.data, average))
        for value in self.optimizer.state[weight].values():
            if value.shape == weight.shape:
                value.masked_fill_(moved, 0.0)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR through codes alone and through the latent, of the averaged weights, in float32; code usage."""
        model, image = self.average.module, self.held_out_pictures()
        target = 2 * image - 1
        rows = [self._evaluate(model, image[i : i + 16], target[i : i + 16]) for i in range(0, len(image), 16)]
        used = torch.cat([row[2] for row in rows]).unique().numel()
        rest = torch.cat([row[3] for row in rows])
        gain = gain_of(rest)
        return {
            "psnr_discrete": float(torch.stack([row[0] for row in rows]).mean()),
            "psnr_hybrid": float(torch.stack([row[1] for row in rows]).mean()),
            "codes_used": used / self.model.quantize.embedding.num_embeddings,
            "gain": gain,
            "inside_rescaled": float((rest.abs() * gain < RESIDUAL_GAIN).float().mean()),
        }

    def _evaluate(self, model: HybridAutoencoder, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latent = model.encode(image)
        indices, residual, f_hat = model.quantize.encode(latent)
        scores = [psnr(model.decode(f), target) for f in (f_hat, latent)]
        return scores[0], scores[1], torch.cat(indices, dim=1).flatten(), residual - model.quantize.embedding(indices[-1])

    def held_out_pictures(self) -> Tensor:
        if self.held_out is None:
            self.held_out = self.render(make_batch(self.source, EVALUATED, self.options.seed, 0, held_out=True))
        return self.held_out

    def render(self, batch: Batch) -> Tensor:
        picture = self.source.render(batch.to(self.device).packed, self.size.pixels)
        return picture.to(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "usage": self.care.usage,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.care.usage.copy_(state["usage"])

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write OUT/tokenizer/ with the latents scaled so that the diffusion's targets fill −1…1."""
        model = HybridAutoencoder(self.size.autoencoder_config).to(self.device)
        model.load_state_dict(self.average.module.state_dict())
        if self.options.part == "all":
            rescale(model, self.evaluate()["gain"])
        write_part(folder / "tokenizer", self.size.autoencoder, {f"vae.{key}": value for key, value in model.state_dict().items()})


def trainable(model: HybridAutoencoder, part: str) -> HybridAutoencoder:
    """All of the model, or the decoder alone: latents and codes stay, so what was trained on them goes on working."""
    model.requires_grad_(part == "all")
    for module in (model.post_quant_conv, model.decoder):
        module.requires_grad_(True)
    return model


@torch.no_grad()
def rescale(model: HybridAutoencoder, gain: float) -> None:
    """Multiply all latents by `gain` and leave codes chosen and pictures as they are."""
    quantize = model.quantize
    scaled = [model.quant_conv.weight, model.quant_conv.bias, quantize.embedding.weight]
    for tensor in [*scaled, *(conv.bias for conv in quantize.quant_resi.qresi_ls)]:
        tensor.mul_(gain)
    model.post_quant_conv.weight.div_(gain)


def parser() -> ArgumentParser:
    parser = command.parser(__doc__, minutes=9, batch=24, lr=6e-4, ema=0.999, warmup=300)
    parser.add_argument("--init", type=Path, help="checkpoint or --out folder of an earlier run, whose weights to start from")
    parser.add_argument("--part", choices=("all", "decoder"), default="all", help="what is trained")
    parser.add_argument("--beta", type=float, default=0.25, help="commitment")
    parser.add_argument("--continuous", type=float, default=0.5, help="share of pictures decoded from the continuous latent")
    parser.add_argument("--vq", type=float, default=1.0, help="weight of the quantisation loss")
    parser.add_argument("--limit", type=float, default=0.55, help="magnitude of the continuous residual that is free")
    parser.add_argument("--penalty", type=float, default=1.0, help="on the square of what exceeds --limit")
    parser.add_argument("--noise", type=float, default=0.1, help="noise on continuous latents, relative to the residual")
    return parser


def run(options: Namespace, source: Source) -> int:
    """The whole stage or one session of it; returns the steps done in all."""
    return command.run_stage("tokenizer", options, source, partial(TokenizerTrainer, source=source, options=options))


if __name__ == "__main__":
    command.main(parser(), run)
