"""Gives back the checkpoint that a shipped bundle was made from, bit for bit.

A package holds the weights once: in the fp16 bundle, in the layout of its engines, and, where the bundle lacks them (the
image encoder, embeddings that export computes away), in `rest.safetensors`, beside the checkpoint's configuration files.
Which element of the bundle belongs where is written down nowhere. The engines' modules are built once more, from a model
whose elements are numbered, and the numbers in their parameters tell.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from hart_edge.runtime.bundle import WEIGHTS, Bundle, bundled_folder
from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.files import sha256_of, writable_folder

from . import modules
from .engines import engine_builders
from .reference.config import AutoencoderConfig, TransformerConfig
from .reference.hart import HartReference

BUNDLED = "bundled"
CACHE = "hart-edge"  # folder below the user's cache folder
REST = "rest.safetensors"
PART_WEIGHTS = "model.safetensors"
PARTS = ("llm", "tokenizer", "text_model")
PACKAGE = Path(__file__).parent  # where the rest of this install's bundle lies, in the folder `bundled`

State = dict[str, Tensor]  # by part/key
Numbers = dict[str, npt.NDArray[np.int64]]
_REINSTALL = "Install hart-edge again."
_BITS = 20  # of a number at a time: float32 holds whole numbers up to 2²⁴


def bundled_checkpoint() -> Path:
    """The checkpoint of this install's bundle, restored into the user's cache the first time."""
    bundle, rest = bundled_folder(), PACKAGE / BUNDLED
    if not (rest / REST).is_file():
        raise BundleError(f"this install cannot restore the checkpoint of its bundle: {rest / REST} is missing.", _REINSTALL)
    weights = Bundle(bundle, check_files=False).manifest.files[WEIGHTS].sha256
    key = hashlib.sha256(f"{weights} {sha256_of(rest / REST)} {config_digest(rest)}".encode())
    target = user_cache_path(CACHE, appauthor=False) / f"checkpoint-{key.hexdigest()[:32]}"
    wanted = [*configs_of(rest), *(Path(part, PART_WEIGHTS) for part in PARTS)]
    if not all((target / file).is_file() for file in wanted):
        restore(bundle, rest, target, overwrite=True)
    return target


def restore(bundle: Path, rest: Path, target: Path, overwrite: bool = False) -> None:
    """Write the checkpoint in the published layout, float16.

    Args:
        bundle: folder of the fp16 bundle.
        rest: folder with `rest.safetensors` and the configuration files.
        target: folder to make; it appears complete or not at all.
        overwrite: replace an existing folder.

    Raises BundleError when a file is missing or damaged, when the two do not belong together, or when the result is not
    what was shipped, to the last bit.
    """
    opened = Bundle(bundle)
    kept, facts = _read_rest(rest / REST)
    if facts.get("bundle") != opened.manifest.files[WEIGHTS].sha256:
        raise BundleError(f"{rest / REST} belongs to another bundle than {bundle}.", _REINSTALL)
    if facts.get("configs") != config_digest(rest):
        raise BundleError(f"the configuration files in {rest} are not those that were shipped.", _REINSTALL)
    state = given(opened, rest) | kept
    if facts.get("checkpoint") != digest(state):
        raise BundleError(f"the checkpoint restored from {bundle} and {rest} is not the one that was shipped.", _REINSTALL)
    with writable_folder(target, overwrite) as folder:
        shutil.copytree(rest, folder, ignore=shutil.ignore_patterns(REST, ".*"), dirs_exist_ok=True)
        for part in PARTS:
            tensors = {key.removeprefix(f"{part}/"): value for key, value in state.items() if key.startswith(f"{part}/")}
            save(tensors, folder / part / PART_WEIGHTS)


def missing(original: Mapping[str, Tensor], bundle: Bundle, configs: Path) -> State:
    """The tensors of a float16 checkpoint that its bundle does not give back bit for bit; see `given`."""
    found = given(bundle, configs)
    return {key: value for key, value in original.items() if key not in found or not same(found[key], value)}


def given(bundle: Bundle, configs: Path) -> State:
    """The checkpoint tensors whose every element is in a parameter of the bundle, float16.

    Args:
        bundle: an fp16 bundle with a text encoder.
        configs: folder with the configuration of the three parts.
    """
    skeleton = _Skeleton(configs)
    numbers = skeleton.numbers()
    values, known = np.zeros(skeleton.elements + 1, np.float16), np.zeros(skeleton.elements + 1, bool)
    for name, stored in bundle.constants(*numbers).items():
        at = numbers[name]
        values[at], known[at] = stored.astype(np.float16), True  # number 0 gathers what is no element of the checkpoint
    state, start = {}, 1
    for key, shape in skeleton.shapes.items():
        stop = start + shape.numel()
        if known[start:stop].all():
            state[key] = torch.from_numpy(values[start:stop].reshape(shape))
        start = stop
    return state


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit; two float16 tensors."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.int16), b.view(torch.int16))


def configs_of(rest: Path) -> list[Path]:
    """Every file but `rest.safetensors` and hidden ones, relative to the folder, in the order of their names."""
    files = [path for path in rest.rglob("*") if path.is_file() and path.name != REST and not path.name.startswith(".")]
    return sorted(path.relative_to(rest) for path in files)


def config_digest(rest: Path) -> str:
    """SHA-256 over names and contents of the configuration files."""
    lines = [f"{file.as_posix()} {sha256_of(rest / file)}\n" for file in configs_of(rest)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, in the order of the names."""
    total = hashlib.sha256()
    for key in sorted(state):
        total.update(f"{key} {state[key].dtype} {list(state[key].shape)}\n".encode())
        total.update(state[key].contiguous().numpy().data)
    return total.hexdigest()


def save(state: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """A safetensors file that transformers accepts and everybody may read."""
    save_file({key: value.contiguous() for key, value in state.items()}, path, {"format": "pt", **(facts or {})})
    path.chmod(0o644)


def _read_rest(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors and facts of `rest.safetensors`."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        return load_file(path), facts
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", _REINSTALL) from error


class _Skeleton:
    """The models of a checkpoint without its weights. Elements are numbered from 1, tensor by tensor.

    Attributes:
        shapes: of every tensor, by part/key.
        elements: how many there are.
    """

    def __init__(self, configs: Path) -> None:
        with torch.device("meta"):
            transformer = TransformerConfig.from_dict(_read_config(configs / "llm"))
            autoencoder = AutoencoderConfig.from_dict(_read_config(configs / "tokenizer"))
            self.model = HartReference(transformer, autoencoder)
            self.text = Qwen2Model(Qwen2Config.from_dict(_read_config(configs / "text_model")))
        self.context_tokens = transformer.context_token
        self.parts = dict(zip(PARTS, ((self.model.transformer, ""), (self.model.vae, "vae."), (self.text, "")), strict=True))
        self.shapes = {
            f"{part}/{prefix}{key}": value.shape
            for part, (module, prefix) in self.parts.items()
            for key, value in module.state_dict().items()
        }
        self.elements = sum(shape.numel() for shape in self.shapes.values())

    def numbers(self) -> Numbers:
        """For every parameter of a bundle, in its shape, which element of the checkpoint stands where; 0 for none."""
        total: Numbers = {}
        for shift in range(0, self.elements.bit_length(), _BITS):
            for name, digits in self._parameters(shift).items():
                total[name] = total.get(name, 0) + (digits << shift)
        return total

    @torch.no_grad()
    def _parameters(self, shift: int) -> Numbers:
        """The engines' parameters, built from a model whose elements hold _BITS bits of their numbers from `shift` on."""
        start = 1
        for module, _ in self.parts.values():
            state = {}
            for key, value in module.state_dict().items():
                number = torch.arange(start, start + value.numel()).view(value.shape)
                state[key] = (number >> shift & (1 << _BITS) - 1).float()
                start += value.numel()
            module.load_state_dict(state, assign=True)
        no_prompt = torch.empty(0, dtype=torch.int64)
        builders = engine_builders(self.model, None, "fp32")
        builders["text_encoder"] = lambda: modules.TextEncoder(self.text, no_prompt, self.context_tokens)
        return {
            f"{name}.{key}": parameter.detach().numpy().astype(np.int64)
            for name, build in builders.items()
            for key, parameter in build().named_parameters()
        }


def _read_config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config
