"""Makes a checkpoint with random weights in the published layout, with a real BPE tokenizer.

    python -m hart_edge.export.random_checkpoint FOLDER --size tiny

For trying the whole path without the released weights: its pictures are noise, its sizes and its numerics are real.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from hart_edge.runtime.errors import InputError
from hart_edge.runtime.files import writable_folder

from .bpe import save_tokenizer, train_bpe
from .reference.config import AutoencoderConfig, TransformerConfig
from .reference.hart import HartReference


@dataclass(frozen=True)
class Size:
    """Configuration of one random checkpoint, as the published files would say it."""

    transformer: dict[str, object]
    autoencoder: dict[str, object]
    text: dict[str, int]


def _size(
    patch_nums: list[int],
    *,
    depth: int,
    width: int,
    heads: int,
    tokens: int,
    text: tuple[int, int, int],
    vae: tuple[int, int, int],
    diffusion: tuple[int, int],
) -> Size:
    """text: (width, layers, heads); vae: (codebook size, latent channels, ch); diffusion: (width, depth)."""
    fixed = {"mlp_type": "llama", "attn_type": "llama", "disable_aln": True, "use_timestep_embed": True, "use_context_norm": True}
    transformer = fixed | {
        "patch_nums": patch_nums,
        "depth": depth,
        "embed_dim": width,
        "num_heads": heads,
        "context_token": tokens,
        "context_dim": text[0],
        "diff_width": diffusion[0],
        "diff_depth": diffusion[1],
        "num_sampling_steps": "8",
    }
    autoencoder = {
        "quantizer_type": "var_hybrid",
        "hybrid": True,
        "v_patch_nums": patch_nums,
        "vocab_size": vae[0],
        "z_channels": vae[1],
        "ch": vae[2],
    }
    return Size(transformer, autoencoder, {"hidden_size": text[0], "num_hidden_layers": text[1], "num_attention_heads": text[2]})


SIZES = {
    "tiny": _size([1, 2, 3, 4, 6, 8], depth=2, width=64, heads=2, tokens=16, text=(64, 2, 4), vae=(640, 8, 32), diffusion=(64, 2)),
    "mid": _size(
        [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], depth=8, width=384, heads=6, tokens=64, text=(256, 4, 4), vae=(2048, 16, 64), diffusion=(384, 3)
    ),
    **{
        f"full-{pixels}": _size(
            scales, depth=24, width=1536, heads=24, tokens=300, text=(1536, 2, 12), vae=(4096, 32, 160), diffusion=(1024, 6)
        )
        for pixels, scales in {
            512: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
            1024: [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64],
        }.items()
    },
}


def make_checkpoint(folder: Path, size: Size, seed: int = 0) -> Path:
    """Write llm/, tokenizer/ and text_model/; the same seed gives the same weights. Returns the folder."""
    torch.manual_seed(seed)
    model = HartReference(TransformerConfig.from_dict(size.transformer), AutoencoderConfig.from_dict(size.autoencoder))
    _scatter(model)
    with writable_folder(folder) as root:
        _write(root / "llm", size.transformer, model.transformer.state_dict())
        _write(root / "tokenizer", size.autoencoder, {f"vae.{key}": value for key, value in model.vae.state_dict().items()})
        del model
        _write_text_model(root / "text_model", size.text)
    return folder


@torch.no_grad()
def _scatter(module: nn.Module) -> None:
    """Move biases and norm weights off 0 and 1, so that a graph that forgets one is found out."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def _write(folder: Path, config: dict[str, object], state: dict[str, Tensor]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")


def _write_text_model(folder: Path, sizes: dict[str, int]) -> None:
    tokenizer = train_bpe(captions())
    width = sizes["hidden_size"]
    config = Qwen2Config(
        **sizes, num_key_value_heads=2, intermediate_size=2 * width, vocab_size=tokenizer.get_vocab_size(), use_sliding_window=False
    )
    model = Qwen2Model(config)
    _scatter(model)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def captions() -> list[str]:
    """Plain English picture captions."""
    subjects = ["a lighthouse", "two red circles", "an old fisherman", "the city skyline", "a bowl of fruit", "three white horses"]
    places = ["at dusk", "above a blue square", "by the sea", "in heavy rain", "on a wooden table", "under northern lights"]
    styles = ["oil painting", "studio photograph", "watercolour sketch", "detailed illustration"]
    return [f"{subject} {place}, {style}" for subject in subjects for place in places for style in styles]


def main(folder: Path, size: Annotated[str, typer.Option(help=f"one of {', '.join(SIZES)}")] = "tiny", seed: int = 0) -> None:
    """Make a checkpoint with random weights."""
    if size not in SIZES:
        raise typer.BadParameter(f"{size!r} is not one of {', '.join(SIZES)}")
    try:
        make_checkpoint(folder, SIZES[size], seed)
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    typer.run(main)
