"""Configuration of a checkpoint: what is accepted, defaulted, warned about, and refused by name."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from hart_edge.export.reference.config import AutoencoderConfig, TransformerConfig, check_pair
from hart_edge.runtime.errors import CheckpointError, HartWarning

TRANSFORMER = {"mlp_type": "llama", "attn_type": "llama", "disable_aln": True, "use_timestep_embed": True}
AUTOENCODER = {"quantizer_type": "var_hybrid", "hybrid": True}
VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def refusal(kind, raw: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        kind.from_dict(raw)
    assert caught.value.hint
    return str(caught.value)


def test_recorded_configs_are_accepted(recorded_config: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformer = TransformerConfig.from_dict(recorded_config["transformer"])
        autoencoder = AutoencoderConfig.from_dict(recorded_config["vae"])
        check_pair(transformer, autoencoder)
    assert list(transformer.patch_nums) == recorded_config["transformer"]["patch_nums"]
    assert transformer.num_sampling_steps == 8  # written as the text "8"
    assert (autoencoder.vocab_size, autoencoder.z_channels, autoencoder.downsample) == (640, 8, 16)


def test_defaults_of_the_transformer() -> None:
    assert TransformerConfig.from_dict(TRANSFORMER) == TransformerConfig(
        patch_nums=VAR_SCALES,
        depth=16,
        embed_dim=1024,
        num_heads=16,
        mlp_ratio=4.0,
        norm_eps=1e-6,
        attn_l2_norm=False,
        context_token=77,
        context_dim=768,
        use_context_norm=False,
        diff_width=1024,
        diff_depth=6,
        num_sampling_steps=8,
    )


def test_defaults_of_the_autoencoder() -> None:
    config = AutoencoderConfig.from_dict(AUTOENCODER)
    assert config == AutoencoderConfig(VAR_SCALES, 160, (1, 1, 2, 2, 4), 4096, 32, 0.5, 4)
    assert config.downsample == 16


def test_derived_sizes_of_the_released_model() -> None:
    config = TransformerConfig.from_dict(TRANSFORMER | {"embed_dim": 1536, "num_heads": 24})
    assert (config.head_dim, config.mlp_hidden) == (64, 4096)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_type", "gpt2"),
        ("attn_type", "gpt2"),
        ("disable_aln", False),
        ("use_timestep_embed", False),
        ("sep_aln_pooling_mode", "mean"),
        ("use_cross_attn", True),
        ("sampler", "dpm"),
        ("depth", 0),
        ("depth", "many"),
        ("depth", 2.5),
        ("depth", None),
        ("depth", float("inf")),
        ("embed_dim", -1536),
        ("num_heads", 7),  # does not divide 1024
        ("num_heads", 512),  # heads of 2
        ("context_token", 0),
        ("context_dim", []),
        ("diff_width", 0),
        ("diff_depth", "6x"),
        ("num_sampling_steps", 0),
        ("num_sampling_steps", 1001),
        ("num_sampling_steps", "ddim8"),
        ("patch_nums", [1]),
        ("patch_nums", [2, 3]),
        ("patch_nums", [1, 3, 3]),
        ("patch_nums", [1, 4, 2]),
        ("patch_nums", [1, 2.5, 4]),
        ("patch_nums", [1, "x"]),
        ("patch_nums", 16),
        ("patch_nums", None),
        ("mlp_ratio", "wide"),
        ("mlp_ratio", None),
        ("norm_eps", "small"),
        ("norm_eps", None),
    ],
)
def test_unsupported_transformer_value_is_named(key: str, value: Any) -> None:
    message = refusal(TransformerConfig, TRANSFORMER | {key: value})
    assert message.startswith("llm/config.json")
    assert f"{key} = {value!r}" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantizer_type", "var"),
        ("hybrid", False),
        ("using_znorm", True),
        ("quant_conv_ks", 1),
        ("disable_quant_resi", True),
        ("double_decoder", True),
        ("ch", 0),
        ("ch", 48),
        ("ch", "x"),
        ("vocab_size", 0),
        ("z_channels", -1),
        ("share_quant_resi", 1),
        ("share_quant_resi", 0),
        ("v_patch_nums", [1]),
        ("v_patch_nums", [4, 2, 1]),
        ("ch_mult", [1, "x"]),
        ("ch_mult", [1, 0]),
        ("ch_mult", []),
        ("ch_mult", 4),
        ("quant_resi", "half"),
        ("quant_resi", None),
    ],
)
def test_unsupported_autoencoder_value_is_named(key: str, value: Any) -> None:
    message = refusal(AutoencoderConfig, AUTOENCODER | {key: value})
    assert message.startswith("tokenizer/config.json")
    assert f"{key} = {value!r}" in message


@pytest.mark.parametrize("key", TRANSFORMER)
def test_absent_key_whose_default_is_unsupported_is_named(key: str) -> None:
    assert f"{key} = " in refusal(TransformerConfig, {k: v for k, v in TRANSFORMER.items() if k != key})


@pytest.mark.parametrize("key", AUTOENCODER)
def test_absent_autoencoder_key_whose_default_is_unsupported_is_named(key: str) -> None:
    assert f"{key} = " in refusal(AutoencoderConfig, {k: v for k, v in AUTOENCODER.items() if k != key})


@pytest.mark.parametrize(("kind", "raw"), [(TransformerConfig, TRANSFORMER), (AutoencoderConfig, AUTOENCODER)])
def test_unknown_keys_warn_all_at_once_and_change_nothing(kind, raw: dict[str, Any]) -> None:
    with pytest.warns(HartWarning, match="colour, shape") as caught:
        assert kind.from_dict(raw | {"shape": 1, "colour": 2}) == kind.from_dict(raw)
    assert len(caught) == 1


@pytest.mark.parametrize("key", ["_name_or_path", "architectures", "torch_dtype", "drop_path_rate", "cond_drop_rate", "vae_path"])
def test_keys_without_influence_do_not_warn(key: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TransformerConfig.from_dict(TRANSFORMER | {key: "x"}) == TransformerConfig.from_dict(TRANSFORMER)


def test_place_of_the_config_is_in_the_message() -> None:
    with pytest.raises(CheckpointError, match=r"^here/config\.json: depth = 0"):
        TransformerConfig.from_dict(TRANSFORMER | {"depth": 0}, "here/config.json")


def test_scales_of_both_halves_must_agree() -> None:
    transformer = TransformerConfig.from_dict(TRANSFORMER | {"patch_nums": [1, 2, 19]})
    autoencoder = AutoencoderConfig.from_dict(AUTOENCODER | {"v_patch_nums": [1, 2, 111]})
    with pytest.raises(CheckpointError, match=r"\[1, 2, 19\].*\[1, 2, 111\]"):
        check_pair(transformer, autoencoder)
    check_pair(transformer, AutoencoderConfig.from_dict(AUTOENCODER | {"v_patch_nums": [1, 2, 19]}))
