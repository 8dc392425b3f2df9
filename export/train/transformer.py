"""Stage 2: trains the transformer, its diffusion head and the text encoder together, from scratch.

    python -m hart_edge.export.train.transformer --tokenizer DIR --out DIR [--minutes 16] [--session 9]

The tokenizer is frozen. Most of the last scale's tokens are left out of the sequence (80 % on average), captions are
dropped for guidance, and some input codes are wrong on purpose. OUT becomes a checkpoint in the published layout.
"""

from __future__ import annotations

import random
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hart_edge.runtime.files import writable_folder

from ..reference.transformer import HartTransformer
from . import command
from .assemble import WEIGHTS, check_weights, read_tokenizer, read_weights, write_part
from .data import HELD_OUT_STREAM, Batch, Packed, Source, make_batch
from .diffusion_loss import DiffusionLoss, residual_target
from .graphs import Metrics, StepGraphs
from .held_out import measure
from .joint import Joint
from .optim import Average, adamw, backward, descend, groups, learning_rate, muon
from .pool import Pool
from .quantize import Codes, encode
from .sequence import Predictions, forward, kept_count, random_places, run_block, take
from .sizes import Size
from .text import CaptionTokens, drop_captions, encode_text, new_text_model, write_bpe

EVALUATED = 32  # held-out pictures
CAPTIONS_FOR_BPE = 8000
CHUNK = 256  # pictures encoded at a time
DYNAMO_SHAPES = 32  # one compiled block per sequence length


class TransformerTrainer:
    """The joint model, its optimiser and its average, over a frozen tokenizer."""

    def __init__(self, size: Size, device: torch.device, *, source: Source, options: Namespace, captions: CaptionTokens) -> None:
        torch.manual_seed(options.seed)
        self.size, self.source, self.options, self.captions, self.device = size, source, options, captions, device
        self.vae = read_tokenizer(options.tokenizer, size).to(device, memory_format=torch.channels_last)
        text = new_text_model(size.text, len(captions.tokenizer))
        self.model = Joint(HartTransformer(size.transformer_config, size.autoencoder_config), text, source.claim_sizes).to(device)
        if options.init is not None:
            read_weights(options.init, self.model)
        self.average = Average(self.model, options.ema)
        matrices = self.model.matrices()
        rest = without(groups(self.model, options.decay), matrices)
        self.optimizers = [adamw(rest, options.lr, (0.9, 0.95)), muon(matrices, options.lr, options.decay)]
        self.diffusion_loss = DiffusionLoss(device)
        self.generator = torch.Generator(device)
        self.pool = Pool(self.latents, options.pool if options.reuse > 1 else 0)
        self.learn = StepGraphs(self._learn, self.generator, options.graphs)
        self.weights = scale_weights(size.transformer_config.patch_nums, options.balance)
        self.block, self.encoder = run_block, self.vae.encode
        if options.compile:
            torch._dynamo.config.recompile_limit = DYNAMO_SHAPES
            self.block, self.encoder = torch.compile(run_block, dynamic=False), torch.compile(self.vae.encode)
        self.held_out: tuple[Tensor, Tensor] | None = None

    def prepare(self, batches: Iterator[Batch]) -> None:
        self.pool.fill(batches)

    def step(self, batch: Batch, step: int, progress: float) -> Metrics:
        options, g = self.options, self.generator.manual_seed(self.options.seed * 1_000_003 + step)
        latent, ids, claims = self.pool.draw(batch, options.batch, g)
        keep = self._places(len(latent), step, g)
        metrics = self.learn(keep.shape[1], latent, ids, claims, keep)
        descend(self.optimizers, self.model, self.average, learning_rate(options.lr, step, progress, options.warmup), step)
        return metrics

    def _learn(self, latent: Tensor, ids: Tensor, claims: Tensor, keep: Tensor) -> Metrics:
        """Loss and gradients of latents [B, Z, G, G], ids [B, T], claims [B, K], places of the last scale's tokens [B, N]."""
        options, g = self.options, self.generator
        codes = encode(self.vae.quantize, latent, options.corrupt, g)
        codes.targets[-1], codes.residual = take(codes.targets[-1], keep), take(codes.residual, keep)
        with self.autocast():
            hidden, positions = encode_text(self.model.text, ids)
            reading = self.model.reading_loss(hidden, positions, claims)
            dropped = torch.rand(len(ids), device=self.device, generator=g) < options.drop
            context = drop_captions(hidden, positions, dropped)
            out = forward(self.model.transformer, *context, codes.inputs, keep, self.block)
            mse, kl = self._diffusion(out, codes, g)
        weighted, losses = self._cross_entropy(out, codes)
        loss = weighted + options.diffusion * (mse + kl) + options.reading * reading
        norm = backward(loss, self.model)
        return {"loss": loss, **losses, "eps": mse, "kl": kl, "reading": reading, "grad": norm}

    @torch.no_grad()
    def latents(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Rendered and encoded: latents [B, Z, G, G] float32, caption ids [B, T], claims [B, K]."""
        batch = batch.to(self.device)
        assert batch.text is not None
        rows = len(batch.captions)
        parts = [{key: value[i : i + CHUNK] for key, value in batch.packed.items()} for i in range(0, rows, CHUNK)]
        return torch.cat([self._encode(part) for part in parts]), batch.text.ids, batch.text.claims

    def _encode(self, packed: Packed) -> Tensor:
        image = self.source.render(packed, self.size.pixels).to(memory_format=torch.channels_last)
        with self.autocast():
            latent = self.encoder(image)
        return latent.float().contiguous()

    def _places(self, rows: int, step: int, g: torch.Generator) -> Tensor:
        patch_nums, context = self.vae.config.patch_nums, self.size.transformer_config.context_token
        count = kept_count(patch_nums, context, self.options.keep, random.Random(f"{self.options.seed}/{step}").random())
        return random_places(rows, patch_nums[-1] ** 2, count, self.device, g)

    def _cross_entropy(self, out: Predictions, codes: Codes) -> tuple[Tensor, Metrics]:
        """The scales' weighted mean; then the plain mean over all tokens, of the first scale's, of the last's."""
        target = torch.cat(codes.targets, dim=1)  # [R, N]
        rows = F.cross_entropy(out.logits.flatten(0, 1), target.flatten(), reduction="none", label_smoothing=self.options.smoothing)
        each = rows.view_as(target)
        parts = [part.mean() for part in each.split(out.lengths, dim=1)]
        shares = [weight * length for weight, length in zip(self.weights, out.lengths, strict=True)]
        weighted = sum(share / sum(shares) * part for share, part in zip(shares, parts, strict=True))
        facts = {"ce": each.mean(), "ce_first": parts[0], "ce_last": parts[-1]}
        return torch.as_tensor(weighted), {name: value.detach() for name, value in facts.items()}

    def _diffusion(self, out: Predictions, codes: Codes, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Conditions on the true code for one half of the tokens and on a sampled one for the other."""
        draw = {"device": self.device, "generator": g}
        model, last = self.model.transformer, out.lengths[-1]
        logits = out.logits[:, -last:].detach()
        own = (logits - torch.rand(logits.shape, **draw).clamp(1e-10).log().neg().log()).argmax(-1)
        index = torch.where(torch.rand(own.shape, **draw) < 0.5, own, codes.targets[-1])
        code = self.vae.quantize.embedding(index)  # [R, K, Z]
        z = model.decoder_norm(out.hidden[:, -last:] + model.word_embed(code)).flatten(0, 1)
        target = residual_target(codes.residual, code).flatten(0, 1)
        z, target = z.repeat(self.options.draws, 1), target.repeat(self.options.draws, 1)
        t = torch.randint(1000, (len(z),), **draw)
        return self.diffusion_loss(model.diffloss.net, target, z, t, torch.randn(target.shape, **draw))

    def evaluate(self) -> dict[str, float]:
        """See `held_out.measure`."""
        if self.held_out is None:
            batch = make_batch(self.source, EVALUATED, self.options.seed, 0, tokenize=self.captions, held_out=True).to(self.device)
            assert batch.text is not None
            self.held_out = self.source.render(batch.packed, self.size.pixels), batch.text.ids
        return measure(self.average.module, self.vae, *self.held_out, seed=self.options.seed)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "average": self.average.module}
        return {name: part.state_dict() for name, part in parts.items()} | {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def export(self, folder: Path) -> None:
        """Write llm/, tokenizer/ and text_model/."""
        joint = self.average.module
        write_part(folder / "llm", self.size.transformer, joint.transformer.state_dict())
        write_part(folder / "tokenizer", self.size.autoencoder, {f"vae.{key}": value for key, value in self.vae.state_dict().items()})
        with writable_folder(folder / "text_model", overwrite=True) as root:
            joint.text.save_pretrained(root)
            for file in self.captions.folder.iterdir():
                shutil.copy(file, root / file.name)


def scale_weights(patch_nums: Sequence[int], balance: float) -> list[float]:
    """Weight of a token of each scale, `p**-balance`: the few tokens of the early scales decide on the layout."""
    return [side**-balance for side in patch_nums]


def without(groups: list[dict[str, Any]], taken: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Parameter groups without the parameters that another optimiser has."""
    ids = {id(p) for p in taken}
    return [group | {"params": [p for p in group["params"] if id(p) not in ids]} for group in groups]


def parser() -> ArgumentParser:
    parser = command.parser(__doc__, minutes=16, batch=192, lr=1.5e-3, ema=0.9995, warmup=300)
    parser.add_argument("--tokenizer", type=Path, required=True, help="--out folder of stage 1")
    parser.add_argument("--vocab", type=int, default=512, help="of the caption tokenizer")
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay of matrices")
    parser.add_argument("--balance", type=float, default=0.5, help="weight of a token of a p×p scale: 1/p to this power")
    parser.add_argument("--reading", type=float, default=0.2, help="weight of reading the caption's claims")
    parser.add_argument("--init", type=Path, help="checkpoint or --out folder of an earlier run, whose weights to start from")
    parser.add_argument("--drop", type=float, default=0.1, help="share of captions dropped, for guidance")
    parser.add_argument("--keep", type=float, default=0.2, help="mean share of the last scale's tokens that take part")
    parser.add_argument("--corrupt", type=float, default=0.1, help="mean share of wrong input codes; 0 for none")
    parser.add_argument("--smoothing", type=float, default=0.0, help="label smoothing")
    parser.add_argument("--diffusion", type=float, default=1.0, help="weight of the diffusion loss")
    parser.add_argument("--draws", type=int, default=4, help="timesteps per token")
    return parser


def caption_tokens(options: Namespace, source: Source, size: Size) -> CaptionTokens:
    """The caption tokenizer of the run, trained when there is none yet."""
    folder = options.out / "bpe"
    if options.init is not None:
        folder = options.init / "text_model"
    elif not (folder / "tokenizer.json").is_file():
        rng = np.random.default_rng([options.seed, HELD_OUT_STREAM + 1])
        sampled = [source.sample(rng, False)[1] for _ in range(CAPTIONS_FOR_BPE)]
        options.out.mkdir(parents=True, exist_ok=True)
        write_bpe(sampled, options.vocab, folder)
        lengths = np.array(CaptionTokens(folder, 1).lengths(sampled[:2000]))
        tokens = size.transformer_config.context_token
        print(f"captions: {lengths.mean():.1f} tokens on average, {lengths.max()} at most, {(lengths > tokens).mean():.2%} cut at {tokens}")
    return CaptionTokens(folder, size.transformer_config.context_token)


def run(options: Namespace, source: Source) -> int:
    """The whole stage or one session of it; returns the steps done in all."""
    size = command.size_named(options.size)
    read_tokenizer(options.tokenizer, size)  # a wrong folder is found out before anything is written
    if options.init is not None:
        check_weights(options.init)
    captions = caption_tokens(options, source, size)
    trainer = partial(TransformerTrainer, source=source, options=options, captions=captions)
    pinned = {"tokenizer": command.digest(options.tokenizer / "tokenizer" / WEIGHTS)}
    return command.run_stage("transformer", options, source, trainer, tokenize=captions, pinned=pinned)


if __name__ == "__main__":
    command.main(parser(), run)
