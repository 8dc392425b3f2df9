"""Sizes of the models that can be trained, as the published configuration files would say them."""

from __future__ import annotations

from dataclasses import dataclass

from hart_edge.runtime.errors import InputError

from ..reference.config import AutoencoderConfig, TransformerConfig

_BLOCKS = {"mlp_type": "llama", "attn_type": "llama", "disable_aln": True, "use_timestep_embed": True, "use_context_norm": True}


@dataclass(frozen=True)
class Size:
    """Configuration of one model: `llm/config.json`, `tokenizer/config.json`, and the arguments of Qwen2Config."""

    transformer: dict[str, object]
    autoencoder: dict[str, object]
    text: dict[str, int]

    @property
    def transformer_config(self) -> TransformerConfig:
        return TransformerConfig.from_dict(self.transformer)

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        return AutoencoderConfig.from_dict(self.autoencoder)

    @property
    def pixels(self) -> int:
        """Side of the pictures: latent grid times downsampling."""
        config = self.autoencoder_config
        return config.patch_nums[-1] * config.downsample


SMALL = Size(
    transformer=_BLOCKS
    | {
        "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
        "depth": 6,
        "embed_dim": 256,
        "num_heads": 4,
        "context_token": 32,
        "context_dim": 192,
        "diff_width": 256,
        "diff_depth": 3,
        "num_sampling_steps": "8",
    },
    autoencoder={
        "quantizer_type": "var_hybrid",
        "hybrid": True,
        "v_patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
        "vocab_size": 1024,
        "z_channels": 32,
        "ch": 32,
        "ch_mult": [1, 1, 2, 2, 3],
        "quant_resi": 0.5,
        "share_quant_resi": 4,
    },
    text={
        "hidden_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 512,
    },
)

# For tests and for trying the scripts on a CPU: 32 px, seconds a step at most.
TINY = Size(
    transformer=_BLOCKS
    | {
        "patch_nums": [1, 2, 4, 8],
        "depth": 2,
        "embed_dim": 64,
        "num_heads": 2,
        "context_token": 12,
        "context_dim": 32,
        "diff_width": 64,
        "diff_depth": 2,
        "num_sampling_steps": "8",
    },
    autoencoder={
        "quantizer_type": "var_hybrid",
        "hybrid": True,
        "v_patch_nums": [1, 2, 4, 8],
        "vocab_size": 64,
        "z_channels": 8,
        "ch": 32,
        "ch_mult": [1, 1, 2],
        "quant_resi": 0.5,
        "share_quant_resi": 4,
    },
    text={
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
    },
)

SIZES = {"small": SMALL, "tiny": TINY}


def size_named(name: str) -> Size:
    """A size by its name; InputError lists the names there are."""
    if name not in SIZES:
        raise InputError(f"there is no size {name!r}.", f"Choose one of {', '.join(SIZES)}.")
    return SIZES[name]
