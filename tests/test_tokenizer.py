"""Prompts to ids with a tiny byte-level BPE: padding, truncation, refusals, and agreement with transformers' view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hart_edge.runtime.errors import BundleError, InputError
from hart_edge.runtime.tokenizer import PromptTokenizer, check_prompt

LENGTH = 19
PAD_TEXT = "<|endoftext|>"
CORPUS = ["a lighthouse at dusk, oil painting", "the quick brown fox jumps over the lazy dog", "a fox at dusk"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=[PAD_TEXT], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def raw(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture(scope="module")
def pad(raw: Tokenizer) -> int:
    return raw.token_to_id(PAD_TEXT)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path, pad: int) -> PromptTokenizer:
    return PromptTokenizer(tokenizer_file, pad, LENGTH)


def test_short_prompt_is_padded_on_the_right(tokenizer: PromptTokenizer, raw: Tokenizer, pad: int) -> None:
    ids = raw.encode("a fox").ids
    tokens = tokenizer.encode(["a fox"])
    assert 0 < len(ids) < LENGTH
    assert tokens.ids.tolist() == [ids + [pad] * (LENGTH - len(ids))]
    assert tokens.mask.tolist() == [[1] * len(ids) + [0] * (LENGTH - len(ids))]
    assert tokens.dropped == ("",)


def test_batch_has_one_row_per_prompt(tokenizer: PromptTokenizer) -> None:
    prompts = ["a fox", "", "a lighthouse at dusk " * 9]
    tokens = tokenizer.encode(prompts)
    assert tokens.ids.shape == tokens.mask.shape == tokens.position_ids.shape == (3, LENGTH)
    assert tokens.ids.dtype == tokens.mask.dtype == np.int64
    for row, prompt in enumerate(prompts):
        alone = tokenizer.encode([prompt])
        np.testing.assert_array_equal(tokens.ids[row], alone.ids[0])
        assert tokens.dropped[row] == alone.dropped[0]


def test_long_prompt_is_cut_and_the_rest_is_shown(tokenizer: PromptTokenizer, raw: Tokenizer) -> None:
    prompt = " ".join(CORPUS * 3)
    ids = raw.encode(prompt).ids
    tokens = tokenizer.encode([prompt])
    assert tokens.ids.tolist() == [ids[:LENGTH]]
    assert tokens.mask.all()
    assert tokens.dropped[0]
    assert raw.decode(ids[:LENGTH]) + tokens.dropped[0] == prompt


def test_prompt_of_exactly_t_tokens_loses_nothing(tokenizer_file: Path, raw: Tokenizer, pad: int) -> None:
    ids = raw.encode(CORPUS[0]).ids
    tokens = PromptTokenizer(tokenizer_file, pad, len(ids)).encode([CORPUS[0]])
    assert tokens.ids.tolist() == [ids]
    assert tokens.dropped == ("",)


def test_one_token_too_many_is_dropped(tokenizer_file: Path, raw: Tokenizer, pad: int) -> None:
    ids = raw.encode(CORPUS[0]).ids
    tokens = PromptTokenizer(tokenizer_file, pad, len(ids) - 1).encode([CORPUS[0]])
    assert tokens.dropped == (raw.decode(ids[-1:]),)


def test_empty_prompt_is_only_padding(tokenizer: PromptTokenizer, pad: int) -> None:
    tokens = tokenizer.encode([""])
    assert (tokens.ids == pad).all()
    assert not tokens.mask.any()
    assert (tokens.position_ids == -1).all()
    assert tokens.dropped == ("",)


def test_position_ids_count_the_tokens_and_stay_at_the_last(tokenizer: PromptTokenizer) -> None:
    tokens = tokenizer.encode(["a fox"])
    count = int(tokens.mask.sum())
    assert tokens.position_ids.tolist() == [[*range(count), *[count - 1] * (LENGTH - count)]]


def test_pad_token_text_inside_a_prompt_is_masked(tokenizer: PromptTokenizer, raw: Tokenizer, pad: int) -> None:
    """The model's mask is `ids != pad`, wherever the pad token stands."""
    tokens = tokenizer.encode([f"a{PAD_TEXT}fox"])
    expected = [*raw.encode("a").ids, pad, *raw.encode("fox").ids]
    assert tokens.ids[0, : len(expected)].tolist() == expected
    assert tokens.mask[0, : len(expected)].tolist() == [int(i != pad) for i in expected]
    assert tokens.mask.sum() == len(expected) - 1
    assert tokens.position_ids[0, -1] == len(expected) - 2


@pytest.mark.parametrize("prompt", ["🦊 at dusk", "منارة", "line\nline\ttab", "  spaces  ", "x" * 9_890, "\ufffd\u200d"])
def test_any_unicode_text_is_accepted(tokenizer_file: Path, raw: Tokenizer, pad: int, prompt: str) -> None:
    wide = PromptTokenizer(tokenizer_file, pad, 9_890 * 4)
    tokens = wide.encode([prompt])
    assert raw.decode(tokens.ids[0, : tokens.mask.sum()].tolist()) == prompt
    assert check_prompt(prompt) == prompt


def test_emoji_cut_in_the_middle_still_reports_a_loss(tokenizer_file: Path, raw: Tokenizer, pad: int) -> None:
    assert len(raw.encode("🦊").ids) > 1
    tokens = PromptTokenizer(tokenizer_file, pad, 1).encode(["🦊"])
    assert tokens.dropped[0]


def test_dropped_special_tokens_are_shown(tokenizer_file: Path, pad: int) -> None:
    tokens = PromptTokenizer(tokenizer_file, pad, 1).encode([f"a{PAD_TEXT}"])
    assert tokens.dropped == (PAD_TEXT,)


def test_nul_is_refused_with_its_position(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(InputError, match="NUL character at position 3"):
        tokenizer.encode(["good", "a f\0x"])


@pytest.mark.parametrize("surrogate", ["\ud83e", "\udd8a", "\udcff"])
def test_lone_surrogate_is_refused_with_its_position(tokenizer: PromptTokenizer, surrogate: str) -> None:
    with pytest.raises(InputError, match="lone surrogate at position 2"):
        tokenizer.encode([f"a {surrogate}fox"])


def test_settings_inside_the_file_do_not_matter(tokenizer_file: Path, tmp_path: Path, tokenizer: PromptTokenizer, pad: int) -> None:
    """A published tokenizer.json may carry its own padding and truncation."""
    other = Tokenizer.from_file(str(tokenizer_file))
    other.enable_truncation(3)
    other.enable_padding(length=7, pad_id=5)
    other.save(str(tmp_path / "tokenizer.json"))
    tokens = PromptTokenizer(tmp_path / "tokenizer.json", pad, LENGTH).encode(CORPUS)
    np.testing.assert_array_equal(tokens.ids, tokenizer.encode(CORPUS).ids)


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_file_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        PromptTokenizer(path, 0, LENGTH)


def test_missing_tokenizer_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.json"):
        PromptTokenizer(tmp_path / "absent.json", 0, LENGTH)
