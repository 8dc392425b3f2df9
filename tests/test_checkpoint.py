"""Checkpoints in the published layout: file kinds, damaged and hostile files, keys that do not fit, the text model."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hart_edge.export.checkpoint import load_checkpoint, load_recorded_checkpoint
from hart_edge.runtime import Options
from hart_edge.runtime.errors import CheckpointError

State = dict[str, Tensor]
REBUILT = {"lvl_1L", "blocks.0.attn.zero_k_bias", "blocks.1.attn.zero_k_bias", "vae.quantize.ema_vocab_hit_SV"}
"""Buffers in the recorded files that follow from the configuration or that only training uses."""


@pytest.fixture(scope="module")
def config(golden_folder: Path) -> dict[str, Any]:
    return json.loads((golden_folder / "config.json").read_text())


@pytest.fixture(scope="module")
def transformer_state(golden_folder: Path) -> State:
    state = load_file(golden_folder / "transformer.safetensors")
    return {key: tensor for key, tensor in state.items() if key not in REBUILT}


@pytest.fixture(scope="module")
def autoencoder_state(golden_folder: Path) -> State:
    state = load_file(golden_folder / "vae.safetensors")
    return {key: tensor for key, tensor in state.items() if key not in REBUILT}


@pytest.fixture
def published(tmp_path: Path, golden_folder: Path, config: dict[str, Any]) -> Path:
    """The published layout with safetensors weights."""
    root = tmp_path / "checkpoint"
    for part, kind, weights in (("llm", "transformer", "ema_model.safetensors"), ("tokenizer", "vae", "model.safetensors")):
        (root / part).mkdir(parents=True)
        (root / part / "config.json").write_text(json.dumps(config[kind]))
        shutil.copyfile(golden_folder / f"{kind}.safetensors", root / part / weights)
    return root


def replace_weights(root: Path, state: State) -> None:
    save_file(state, root / "llm" / "ema_model.safetensors")


def add_text_model(root: Path, name: str = "Qwen2", model_type: str = "qwen2") -> Path:
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps({"model_type": model_type}))
    return root / name


def refusal(source: Path | str, **settings: Any) -> str:
    """What loading, or else building, the checkpoint says."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(source, **settings).reference()
    assert caught.value.hint
    return str(caught.value)


def assert_same_states(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_published_layout_gives_the_recorded_model(published: Path, golden_folder: Path) -> None:
    checkpoint = load_checkpoint(published)
    recorded, call = load_recorded_checkpoint(golden_folder)
    assert call == {"cfg": 3.0, "more_smooth": False, "batch": 1}
    assert (checkpoint.transformer, checkpoint.autoencoder) == (recorded.transformer, recorded.autoencoder)
    assert (checkpoint.name, checkpoint.text_model) == (str(published), None)
    model = checkpoint.reference()
    assert not model.training
    assert_same_states(dict(model.state_dict()), dict(recorded.reference().state_dict()))


def test_reference_holds_the_weights_of_the_file(published: Path, transformer_state: State, autoencoder_state: State) -> None:
    model = load_checkpoint(published).reference()
    assert_same_states(dict(model.transformer.state_dict()), transformer_state)
    assert_same_states({f"vae.{key}": value for key, value in model.vae.state_dict().items()}, autoencoder_state)


def test_half_precision_weights_become_float32(published: Path, transformer_state: State) -> None:
    replace_weights(published, {key: tensor.half() for key, tensor in transformer_state.items()})
    state = load_checkpoint(published).reference().transformer.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_own_sampling_settings_are_read(published: Path) -> None:
    assert load_checkpoint(published).options == Options()
    (published / "generation_config.json").write_text('{"cfg": 3.0, "smooth": false}')
    checkpoint = load_checkpoint(published)
    assert checkpoint.defaults == {"cfg": 3.0, "smooth": False}
    assert checkpoint.options == Options(cfg=3.0, smooth=False)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"guidance": 3}', "unknown setting 'guidance'"),
        ('{"cfg": -1}', "cfg is -1"),
        ('{"cfg": NaN}', "cfg is nan"),
        ('{"diffusion_steps": "8"}', "diffusion_steps is '8'"),
        ("[3.0]", "not a JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_unusable_sampling_settings_are_named(published: Path, content: str, named: str) -> None:
    (published / "generation_config.json").write_text(content)
    message = refusal(published)
    assert "generation_config.json" in message and named in message


@pytest.mark.parametrize("name", ["ema_model.bin", "pytorch_model.bin"])
def test_pickled_weights_are_read(published: Path, transformer_state: State, name: str) -> None:
    (published / "llm" / "ema_model.safetensors").unlink()
    torch.save(transformer_state, published / "llm" / name)
    assert_same_states(load_checkpoint(published).transformer_state, transformer_state)


def test_averaged_weights_come_first(published: Path, transformer_state: State) -> None:
    save_file({key: tensor + 1 for key, tensor in transformer_state.items()}, published / "llm" / "model.safetensors")
    assert_same_states(load_checkpoint(published).transformer_state, transformer_state)


def write_shards(folder: Path, state: State) -> None:
    keys = list(state)
    shards = {"model-00001-of-00002.safetensors": keys[:19], "model-00002-of-00002.safetensors": keys[19:]}
    for name, part in shards.items():
        save_file({key: state[key] for key in part}, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in shards.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_weights_are_joined(published: Path, transformer_state: State) -> None:
    (published / "llm" / "ema_model.safetensors").unlink()
    write_shards(published / "llm", transformer_state)
    assert_same_states(load_checkpoint(published).transformer_state, transformer_state)


def test_missing_shard_is_named(published: Path, transformer_state: State) -> None:
    (published / "llm" / "ema_model.safetensors").unlink()
    write_shards(published / "llm", transformer_state)
    (published / "llm" / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(published)


@pytest.mark.parametrize("index", ["{}", "[]", "{", '{"weight_map": []}', '{"weight_map": {"head.bias": 19}}'])
def test_broken_shard_index_is_named(published: Path, index: str) -> None:
    (published / "llm" / "ema_model.safetensors").unlink()
    (published / "llm" / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(published)


def test_all_keys_that_do_not_fit_are_listed_at_once(published: Path, transformer_state: State, autoencoder_state: State) -> None:
    state = dict(transformer_state)
    del state["head.bias"], state["blocks.1.attn.q_bias"]
    state |= {"colour": torch.zeros(1), "word_embed.weight": torch.zeros(19, 7)}
    replace_weights(published, state)
    save_file({k: v for k, v in autoencoder_state.items() if k != "vae.quant_conv.bias"}, published / "tokenizer" / "model.safetensors")
    message = refusal(published)
    for part in (
        "missing: blocks.1.attn.q_bias, head.bias",
        "unexpected: colour",
        "wrong shape: word_embed.weight has [19, 7], expected [64, 8]",
        "missing: vae.quant_conv.bias",
    ):
        assert part in message


def test_deeper_config_than_weights_is_refused(published: Path, config: dict[str, Any]) -> None:
    (published / "llm" / "config.json").write_text(json.dumps(config["transformer"] | {"depth": 3}))
    assert "missing: blocks.2." in refusal(published)


def test_training_keys_and_rebuilt_buffers_are_ignored(published: Path, transformer_state: State, autoencoder_state: State) -> None:
    extra = {name: torch.zeros(19) for name in ("lvl_1L", "attn_bias_for_masking", "blocks.0.attn.zero_k_bias")}
    replace_weights(published, transformer_state | extra)
    other = {name: torch.zeros(19) for name in ("disc.main.0.weight", "vae.quantize.ema_vocab_hit_SV")}
    save_file(autoencoder_state | other, published / "tokenizer" / "model.safetensors")
    checkpoint = load_checkpoint(published)
    assert_same_states(checkpoint.transformer_state, transformer_state)
    assert_same_states(checkpoint.autoencoder_state, autoencoder_state)
    assert checkpoint.reference().transformer.config.depth == 2


class Hostile:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(published: Path, tmp_path: Path, new_format: bool) -> None:
    (published / "llm" / "ema_model.safetensors").unlink()
    path = published / "llm" / "ema_model.bin"
    torch.save({"head.bias": Hostile(tmp_path / "owned")}, path, _use_new_zipfile_serialization=new_format)
    assert "ema_model.bin cannot be read as plain weights" in refusal(published)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [{"model": {"head.bias": torch.zeros(1)}}, {"step": 19}, [torch.zeros(1)], torch.zeros(3)])
def test_pickle_of_something_else_than_tensors_by_name_is_refused(published: Path, content: Any) -> None:
    (published / "llm" / "ema_model.safetensors").unlink()
    torch.save(content, published / "llm" / "ema_model.bin")
    assert "ema_model.bin holds more than tensors" in refusal(published)


@pytest.mark.parametrize("size", [0, 7, 989, -1])
@pytest.mark.parametrize("name", ["ema_model.safetensors", "ema_model.bin"])
def test_truncated_weights_are_refused(published: Path, transformer_state: State, name: str, size: int) -> None:
    path = published / "llm" / name
    if name.endswith(".bin"):
        (published / "llm" / "ema_model.safetensors").unlink()
        torch.save(transformer_state, path)
    path.write_bytes(path.read_bytes()[:size])
    assert f"{name} cannot be read as plain weights" in refusal(published)


def test_folder_without_weights_names_what_was_looked_for(published: Path) -> None:
    (published / "llm" / "ema_model.safetensors").unlink()
    message = refusal(published)
    assert "llm has no weights" in message
    assert "ema_model.bin" in message


@pytest.mark.parametrize("part", ["llm", "tokenizer"])
def test_missing_config_is_named(published: Path, part: str) -> None:
    (published / part / "config.json").unlink()
    assert f"no {part}/config.json" in refusal(published)


@pytest.mark.parametrize("content", ["", "{", "[]", "19"])
def test_config_that_is_no_object(published: Path, content: str) -> None:
    (published / "llm" / "config.json").write_text(content)
    assert "config.json" in refusal(published)


def test_halves_of_different_checkpoints_are_refused(published: Path, config: dict[str, Any]) -> None:
    (published / "tokenizer" / "config.json").write_text(json.dumps(config["vae"] | {"v_patch_nums": [1, 2, 9]}))
    assert "patch_nums" in refusal(published)


@pytest.mark.parametrize("source", ["absent", "/absent/folder", "a/b/c", "owner/name with blanks"])
def test_source_that_is_neither_folder_nor_hub_name(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "neither a folder nor a model-hub name" in refusal(source)


def test_weights_file_in_place_of_a_folder(published: Path) -> None:
    assert "neither a folder" in refusal(published / "llm" / "ema_model.safetensors")


def test_text_model_is_found_by_its_type(published: Path) -> None:
    add_text_model(published, "other", model_type="bert")
    expected = add_text_model(published)
    assert load_checkpoint(published).text_model == expected


def test_named_text_model_wins(published: Path, tmp_path: Path) -> None:
    add_text_model(published)
    assert load_checkpoint(published, text_model=str(tmp_path)).text_model == tmp_path


def test_several_text_models_must_be_told_apart(published: Path) -> None:
    first, second = add_text_model(published, "first"), add_text_model(published, "second")
    message = refusal(published)
    assert str(first) in message
    assert str(second) in message
    assert "--text-model" in message


def test_text_model_that_does_not_exist(published: Path) -> None:
    assert "neither a folder" in refusal(published, text_model="/absent/text model")


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model hub that knows one name; it fetches only what the patterns allow, as the real one does. Lists the names asked for."""
    asked: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str] | None = None) -> str:
        asked.append(name)
        if name != "owner/hart":
            raise OSError("404 Client Error")
        local = tmp_path / "cache"
        for path in filter(Path.is_file, published.rglob("*")):
            relative = path.relative_to(published)
            if allow_patterns is None or any(fnmatch(relative.as_posix(), pattern) for pattern in allow_patterns):
                (local / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, local / relative)
        return str(local)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_hub_name_is_fetched(hub: list[str], transformer_state: State) -> None:
    checkpoint = load_checkpoint("owner/hart")
    assert hub == ["owner/hart"]
    assert checkpoint.name == "owner/hart"
    assert_same_states(checkpoint.transformer_state, transformer_state)


def test_sampling_settings_are_fetched_from_the_hub(hub: list[str], published: Path) -> None:
    (published / "generation_config.json").write_text('{"cfg": 3.0}')
    assert load_checkpoint("owner/hart").options == Options(cfg=3.0)


def test_folder_is_preferred_to_the_hub(hub: list[str], published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (published.parent / "owner").mkdir()
    published.rename(published.parent / "owner" / "hart")
    monkeypatch.chdir(published.parent)
    assert load_checkpoint("owner/hart").transformer.depth == 2
    assert hub == []


def test_text_model_inside_a_hub_repository_is_fetched_whole(hub: list[str], published: Path) -> None:
    folder = add_text_model(published)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"content")
    found = load_checkpoint("owner/hart").text_model
    assert found is not None
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_text_model_may_be_a_hub_name_of_its_own(hub: list[str], published: Path, tmp_path: Path) -> None:
    assert load_checkpoint(published, text_model="owner/hart").text_model == tmp_path / "cache"
    assert hub == ["owner/hart"]


def test_unknown_hub_name_is_named(hub: list[str]) -> None:
    message = refusal("owner/absent")
    assert "owner/absent is no folder here and cannot be fetched" in message
    assert "404" in message


@pytest.mark.parametrize("key", ["transformer", "vae", "call"])
def test_incomplete_recorded_config_is_named(golden_folder: Path, config: dict[str, Any], tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
    with pytest.raises(CheckpointError, match=f"lacks .'{key}'."):
        load_recorded_checkpoint(tmp_path)
