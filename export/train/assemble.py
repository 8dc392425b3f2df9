"""Writes and reads the parts of a checkpoint in the published layout; makes the folder that is shipped.

    python -m hart_edge.export.train.assemble --run DIR --out CKPT [--fp32]

DIR is the --out folder of stage 2, which holds all parts in float32. CKPT is for `hart_edge.export.checkpoint`.
"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hart_edge.runtime.errors import CheckpointError, HartError
from hart_edge.runtime.files import writable_folder

from ..checkpoint import load_checkpoint
from ..reference.autoencoder import HybridAutoencoder
from .joint import Joint
from .sizes import Size

PARTS = ("llm", "tokenizer", "text_model")
WEIGHTS = "model.safetensors"
_METADATA = {"format": "pt"}  # transformers refuses files without it


def write_part(folder: Path, config: Mapping[str, object], state: Mapping[str, Tensor]) -> None:
    """`config.json` and `model.safetensors`, replacing the folder in one step."""
    with writable_folder(folder, overwrite=True) as root:
        (root / "config.json").write_text(json.dumps(dict(config), indent=1), encoding="utf-8")
        _save(state, root / WEIGHTS)


def read_tokenizer(folder: Path, size: Size) -> HybridAutoencoder:
    """The autoencoder that stage 1 wrote to `folder`/tokenizer, for evaluation; CheckpointError when it is not there or of another size."""
    path, remedy = folder / "tokenizer" / WEIGHTS, "Give the --out folder of a finished session of stage 1."
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.", remedy)
    model = HybridAutoencoder(size.autoencoder_config)
    try:
        model.load_state_dict({key.removeprefix("vae."): value for key, value in load_file(path).items()})
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is not a tokenizer of this size: {reason}", remedy) from error
    return model.eval().requires_grad_(False)


def check_weights(folder: Path) -> None:
    """CheckpointError unless `folder` has the weights that stage 2 trains."""
    missing = [part for part in ("llm", "text_model") if not (folder / part / WEIGHTS).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no weights in {', '.join(missing)}.", "Give a checkpoint or the --out folder of a run of stage 2."
        )


def read_weights(folder: Path, model: Joint) -> None:
    """Fill the transformer and the text encoder with those of a checkpoint; CheckpointError when they do not fit."""
    for part, module in (("llm", model.transformer), ("text_model", model.text)):
        path = folder / part / WEIGHTS
        try:
            module.load_state_dict(load_file(path))
        except (SafetensorError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path} does not fit this size: {reason}", "Give a checkpoint of the same --size.") from error


def assemble(run: Path, out: Path, dtype: torch.dtype, overwrite: bool = False) -> None:
    """Copy the parts of a run with their weights rounded to `dtype`, and load the result once as a check."""
    missing = [part for part in PARTS if not (run / part / WEIGHTS).is_file()]
    if missing:
        raise CheckpointError(f"{run} has no weights in {', '.join(missing)}.", "Give the --out folder of a finished session of stage 2.")
    with writable_folder(out, overwrite=overwrite) as root:
        for part in PARTS:
            shutil.copytree(run / part, root / part)
            state = load_file(root / part / WEIGHTS)
            _save({key: _rounded(key, value, dtype) for key, value in state.items()}, root / part / WEIGHTS)
        _set_dtype(root / "text_model" / "config.json", dtype)
        load_checkpoint(root).reference()


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, path, _METADATA)
    path.chmod(0o644)  # safetensors writes 0600, which an installed package must not carry


def _rounded(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = value.to(dtype)
    if not rounded.isfinite().all():
        raise CheckpointError(f"{key} has values that {dtype} cannot hold, largest {float(value.abs().max()):.3g}.", "Pass --fp32.")
    return rounded


def _set_dtype(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    path.write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}, indent=2), encoding="utf-8")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="--out folder of stage 2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fp32", action="store_true", help="keep float32 weights; default float16")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    try:
        assemble(options.run, options.out, torch.float32 if options.fp32 else torch.float16, options.overwrite)
    except HartError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    for part in PARTS:
        print(f"{part}: {(options.out / part / WEIGHTS).stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
