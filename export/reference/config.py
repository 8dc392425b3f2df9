"""Configuration of the reference model: the published `config.json` files, read and checked.

Missing keys take the defaults of the published configuration classes, because `save_pretrained` writes only
what differs from them. A value that the reference does not implement is refused by name.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hart_edge.runtime.errors import CheckpointError, HartWarning

# Keys without influence on inference: training, bookkeeping of transformers, and fields of the published classes
# that the text-to-image inference code never reads.
_INERT = frozenset(
    """_name_or_path architectures auto_map dtype model_type torch_dtype transformers_version vae_path
    drop_rate attn_drop_rate drop_path_rate cond_drop_rate dropout beta shared_aln flash_if_available
    fused_if_available context_norm_scale diffusion_batch_mul diffusion_head_repeats latent_condition_weight
    num_classes levels test_mode freeze_codebook_for_hybrid default_qresi_counts""".split()
)

_TRANSFORMER_FIXED: dict[str, tuple[Any, Any]] = {  # key: (default when absent, the one supported value)
    "mlp_type": ("gpt2", "llama"),
    "attn_type": ("gpt2", "llama"),
    "disable_aln": (False, True),
    "use_timestep_embed": (False, True),
    "sep_aln_pooling_mode": ("max", "max"),
    "use_cross_attn": (False, False),
    "sampler": ("iddpm", "iddpm"),
}
_AUTOENCODER_FIXED: dict[str, tuple[Any, Any]] = {
    "quantizer_type": ("var", "var_hybrid"),
    "hybrid": (False, True),
    "using_znorm": (False, False),
    "quant_conv_ks": (3, 3),
    "disable_quant_resi": (False, False),
    "double_decoder": (False, False),
}
_DEFAULT_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the scale-wise transformer and its diffusion head (`llm/config.json`)."""

    patch_nums: tuple[int, ...]
    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: float
    norm_eps: float
    attn_l2_norm: bool
    context_token: int
    context_dim: int
    use_context_norm: bool
    diff_width: int
    diff_depth: int
    num_sampling_steps: int

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_hidden(self) -> int:
        """SwiGLU width: two thirds of `mlp_ratio · C`, rounded up to a multiple of 256."""
        return int(self.embed_dim * self.mlp_ratio * 2 / 3 + 255) // 256 * 256

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "llm/config.json") -> TransformerConfig:
        """Read and check a parsed `config.json`; CheckpointError names the first unsupported value."""
        _check_fixed(raw, _TRANSFORMER_FIXED, where)
        _warn_unknown(raw, {*cls.__dataclass_fields__, *_TRANSFORMER_FIXED}, where)
        read = _Reader(raw, where)
        config = cls(
            patch_nums=read.patch_nums("patch_nums"),
            depth=read.size("depth", 16),
            embed_dim=read.size("embed_dim", 1024),
            num_heads=read.size("num_heads", 16),
            mlp_ratio=read.number("mlp_ratio", 4.0),
            norm_eps=read.number("norm_eps", 1e-6),
            attn_l2_norm=bool(raw.get("attn_l2_norm", False)),
            context_token=read.size("context_token", 77),
            context_dim=read.size("context_dim", 768),
            use_context_norm=bool(raw.get("use_context_norm", False)),
            diff_width=read.size("diff_width", 1024),
            diff_depth=read.size("diff_depth", 6),
            num_sampling_steps=read.size("num_sampling_steps", 8),
        )
        if config.embed_dim % config.num_heads or config.head_dim % 4:
            raise _unsupported(where, "num_heads", config.num_heads, f"embed_dim {config.embed_dim} / num_heads to be a multiple of 4")
        if config.num_sampling_steps > 1000:
            raise _unsupported(where, "num_sampling_steps", config.num_sampling_steps, "1 to 1000")
        return config


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the hybrid image tokenizer (`tokenizer/config.json`)."""

    patch_nums: tuple[int, ...]
    ch: int
    ch_mult: tuple[int, ...]
    vocab_size: int
    z_channels: int
    quant_resi: float
    share_quant_resi: int

    @property
    def downsample(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.ch_mult) - 1))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "tokenizer/config.json") -> AutoencoderConfig:
        """Read and check a parsed `config.json`; CheckpointError names the first unsupported value."""
        _check_fixed(raw, _AUTOENCODER_FIXED, where)
        _warn_unknown(raw, {*cls.__dataclass_fields__, *_AUTOENCODER_FIXED, "v_patch_nums"}, where)
        read = _Reader(raw, where)
        config = cls(
            patch_nums=read.patch_nums("v_patch_nums"),
            ch=read.size("ch", 160),
            ch_mult=read.sizes("ch_mult", (1, 1, 2, 2, 4)),
            vocab_size=read.size("vocab_size", 4096),
            z_channels=read.size("z_channels", 32),
            quant_resi=read.number("quant_resi", 0.5),
            share_quant_resi=read.size("share_quant_resi", 4),
        )
        if config.share_quant_resi < 2:
            raise _unsupported(where, "share_quant_resi", config.share_quant_resi, "2 or more shared convolutions")
        if config.ch % 32:
            raise _unsupported(where, "ch", config.ch, "a multiple of the 32 groups of GroupNorm")
        return config


def check_pair(transformer: TransformerConfig, autoencoder: AutoencoderConfig) -> None:
    """The two halves of a checkpoint must agree on the scales."""
    if transformer.patch_nums != autoencoder.patch_nums:
        raise CheckpointError(
            f"llm/config.json has patch_nums {list(transformer.patch_nums)} but tokenizer/config.json has "
            f"v_patch_nums {list(autoencoder.patch_nums)}; they must be equal.",
            "Take both folders from the same checkpoint.",
        )


class _Reader:
    """Typed access to a parsed config.json; CheckpointError names key and value."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def size(self, key: str, default: int) -> int:
        """A whole number of 1 or more; text is accepted, as the published num_sampling_steps is written "8"."""
        value = self.raw.get(key, default)
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if not _is_whole(number) or number < 1:
            raise _unsupported(self.where, key, value, "a whole number of 1 or more")
        return int(number)

    def number(self, key: str, default: float) -> float:
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _unsupported(self.where, key, value, "a finite number")
        return float(value)

    def sizes(self, key: str, default: Sequence[int]) -> tuple[int, ...]:
        """A list of whole numbers of 1 or more, one or more of them."""
        value = self.raw.get(key, default)
        if not isinstance(value, list | tuple) or not value or not all(_is_whole(v) and v >= 1 for v in value):
            raise _unsupported(self.where, key, value, "a list of whole numbers of 1 or more")
        return tuple(value)

    def patch_nums(self, key: str) -> tuple[int, ...]:
        scales = self.sizes(key, _DEFAULT_PATCH_NUMS)
        increasing = all(a < b for a, b in itertools.pairwise(scales))
        if len(scales) < 2 or scales[0] != 1 or not increasing:
            raise _unsupported(self.where, key, list(scales), "increasing sides that start at 1, two scales or more")
        return scales


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_fixed(raw: Mapping[str, Any], fixed: Mapping[str, tuple[Any, Any]], where: str) -> None:
    for key, (default, supported) in fixed.items():
        value = raw.get(key, default)
        if value != supported:
            raise _unsupported(where, key, value, repr(supported))


def _warn_unknown(raw: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(raw) - known - _INERT)
    if unknown:
        warnings.warn(f"{where}: keys that hart-edge does not know are ignored: {', '.join(unknown)}", HartWarning, stacklevel=3)


def _unsupported(where: str, key: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {key} = {value!r} is not supported; expected {expected}.",
        "Use a checkpoint of the published HART text-to-image layout.",
    )
