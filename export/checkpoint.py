"""Finds and reads a HART checkpoint in the published layout, or a recorded run, into the reference model.

`llm/` holds config.json and the transformer's weights, `tokenizer/` the autoencoder's (keys prefixed `vae.`), and a
text-model folder lies beside them or is named. `generation_config.json` may hold the model's own sampling settings,
fields of `runtime.options.Options`. Pickles are read weights-only.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hart_edge.runtime.errors import CheckpointError, InputError
from hart_edge.runtime.options import Options, parse_options

from .reference.config import AutoencoderConfig, TransformerConfig
from .reference.hart import HartReference
from .restore import BUNDLED, bundled_checkpoint

State = dict[str, Tensor]

GENERATION_CONFIG = "generation_config.json"

# The published sampler uses the averaged weights, so they come first.
_TRANSFORMER_FILES = ("ema_model.safetensors", "ema_model.bin", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_AUTOENCODER_FILES = _TRANSFORMER_FILES[2:]
# Buffers that follow from the config, and keys that only training uses.
_REBUILT = re.compile(r"^(lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias|vae\.quantize\.ema_vocab_hit_SV|disc\..*)$")
_REMOTE = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass
class Checkpoint:
    """A checkpoint's configuration and weights, keys as published; `defaults` are its own sampling settings."""

    name: str
    transformer: TransformerConfig
    autoencoder: AutoencoderConfig
    transformer_state: State
    autoencoder_state: State
    text_model: Path | None
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> Options:
        """The settings that this model is meant to be sampled with."""
        return parse_options(self.defaults)

    def reference(self) -> HartReference:
        """Build the reference model; CheckpointError lists every missing, unexpected and wrongly shaped key at once."""
        with torch.device("meta"):
            model = HartReference(self.transformer, self.autoencoder)
        problems = [*_problems(model.transformer, self.transformer_state, ""), *_problems(model.vae, self.autoencoder_state, "vae.")]
        if problems:
            raise CheckpointError(
                f"{self.name} does not fit its configuration: {'; '.join(problems)}.",
                "Take weights and config.json from the same checkpoint.",
            )
        _assign(model.transformer, self.transformer_state, "")
        _assign(model.vae, self.autoencoder_state, "vae.")
        return model.eval().requires_grad_(False)


def load_checkpoint(source: str | Path, text_model: str | Path | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: a folder in the published layout, a name on the model hub, which is then fetched, or "bundled" for the
            checkpoint of the bundle that came with this install.
        text_model: folder or hub name of the text model; None looks for one inside `source`.
    """
    root = resolve(source, ["llm/*", "tokenizer/*", "*/config.json", GENERATION_CONFIG])
    for part in ("llm", "tokenizer"):
        if not (root / part / "config.json").is_file():
            raise CheckpointError(
                f"{root} has no {part}/config.json.", "Expected the published layout: llm/, tokenizer/ and a text-model folder."
            )
    text = resolve(text_model) if text_model is not None else _find_text_model(root)
    if text_model is None and text is not None and source != BUNDLED and not Path(source).is_dir():
        resolve(source, [f"{text.name}/*"])  # of a hub checkpoint only its config.json is here so far
    return Checkpoint(
        name=str(source),
        transformer=TransformerConfig.from_dict(_read_json(root / "llm" / "config.json")),
        autoencoder=AutoencoderConfig.from_dict(_read_json(root / "tokenizer" / "config.json")),
        transformer_state=_read_weights(root / "llm", _TRANSFORMER_FILES),
        autoencoder_state=_read_weights(root / "tokenizer", _AUTOENCODER_FILES),
        text_model=text,
        defaults=_read_defaults(root / GENERATION_CONFIG),
    )


def load_recorded_checkpoint(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint of a recorded run (`config.json`, `transformer.safetensors`, `vae.safetensors`) and its call settings."""
    config = _read_json(folder / "config.json")
    missing = [key for key in ("transformer", "vae", "call") if key not in config]
    if missing:
        raise CheckpointError(f"{folder / 'config.json'} lacks {missing}.", "Expected a recorded run: see docs/recordings.md.")
    checkpoint = Checkpoint(
        name=str(folder),
        transformer=TransformerConfig.from_dict(config["transformer"], f"{folder}/config.json: transformer"),
        autoencoder=AutoencoderConfig.from_dict(config["vae"], f"{folder}/config.json: vae"),
        transformer_state=_read_weights(folder, ("transformer.safetensors",)),
        autoencoder_state=_read_weights(folder, ("vae.safetensors",)),
        text_model=None,
    )
    return checkpoint, config["call"]


def resolve(source: str | Path, patterns: list[str] | None = None) -> Path:
    """A folder as it is; a hub name (`owner/name`) fetched into the local cache; "bundled" restored into it.

    The text "bundled" is always the name; a folder called so is `./bundled`.
    """
    if source == BUNDLED:
        return bundled_checkpoint()
    path = Path(source)
    if path.is_dir():
        return path
    if not _REMOTE.match(str(source)):
        raise CheckpointError(f"{source} is neither a folder nor a model-hub name (owner/name).", "Check the path.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds, network errors among them
        raise CheckpointError(
            f"{source} is no folder here and cannot be fetched from the model hub: {error}", "Check the name and the network."
        ) from error


def _find_text_model(root: Path) -> Path | None:
    """The one subfolder whose config.json says qwen2."""
    found = [c.parent for c in sorted(root.glob("*/config.json")) if _read_json(c).get("model_type") == "qwen2"]
    if len(found) > 1:
        raise CheckpointError(f"{root} holds several text models: {[str(f) for f in found]}.", "Name one with --text-model.")
    return found[0] if found else None


def read_text_weights(folder: Path) -> State:
    """The tensors of a text-model folder, as stored."""
    return _read_weights(folder, _AUTOENCODER_FILES)


def _read_defaults(path: Path) -> dict[str, Any]:
    """The model's own sampling settings; empty when it has no such file."""
    if not path.exists():
        return {}
    defaults = _read_json(path)
    try:
        parse_options(defaults)
    except InputError as error:
        raise CheckpointError(f"{path}: {error.message}", error.hint) from error
    return defaults


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Download it again.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is not a JSON object.", "Download it again.")
    return raw


def _read_weights(folder: Path, names: tuple[str, ...]) -> State:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has no weights; looked for {', '.join(names)}.", "Download it again.")
    if path.name.endswith(".index.json"):
        return {key: tensor for shard in _shards(path) for key, tensor in _read_file(folder / shard).items()}
    return _read_file(path)


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index} has no usable weight_map: expected file names by key.", "Download it again.")
    return sorted(names)


def _load_pickle(path: Path) -> State:
    """Weights-only; mapped into memory where the file is of the zip format that allows it."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _read_file(path: Path) -> State:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} cannot be read as plain weights: {(str(error) or type(error).__name__).splitlines()[0]}",
            "Download it again, or convert it to safetensors.",
        ) from error
    strange = (
        {key: type(value).__name__ for key, value in state.items() if not isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {"": type(state).__name__}
    )
    if strange:
        raise CheckpointError(f"{path} holds more than tensors: {strange}.", "Save the plain state dict.")
    return {key: tensor for key, tensor in state.items() if not _REBUILT.match(key)}


def _problems(module: nn.Module, state: State, prefix: str) -> list[str]:
    want = {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing, unexpected = sorted(set(want) - set(state)), sorted(set(state) - set(want))
    shapes = [
        f"{key} has {list(state[key].shape)}, expected {list(want[key])}"
        for key in want
        if key in state and tuple(state[key].shape) != want[key]
    ]
    return [
        f"{kind}: {', '.join(keys)}" for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)) if keys
    ]


def _assign(module: nn.Module, state: State, prefix: str) -> None:
    module.load_state_dict({key.removeprefix(prefix): tensor.float() for key, tensor in state.items()}, assign=True)
