"""The text encoder in training: its BPE tokenizer, its weights from scratch, its forward pass with gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hart_edge.runtime.errors import CheckpointError
from hart_edge.runtime.files import writable_folder

from ..bpe import PAD_ID, save_tokenizer, train_bpe
from ..reference.text import attention_mask, load_tokenizer


def write_bpe(captions: Iterable[str], vocabulary: int, folder: Path) -> None:
    """Train the caption tokenizer and write it to `folder`."""
    with writable_folder(folder, overwrite=True) as root:
        save_tokenizer(train_bpe(captions, vocabulary), root)


class CaptionTokens:
    """captions → ids [B, T] int64, padded right, cut at T, as `TextConditioner.tokenize` does. Goes into worker processes."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.folder, self.tokens = folder, tokens
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
        if self.tokenizer.pad_token_id != PAD_ID:
            raise CheckpointError(f"the tokenizer in {folder} pads with {self.tokenizer.pad_token_id}; expected {PAD_ID}.", "Delete it.")

    def __call__(self, captions: Sequence[str]) -> Tensor:
        rows = [self.tokenizer(caption).input_ids[: self.tokens] for caption in captions]
        return torch.tensor([row + [PAD_ID] * (self.tokens - len(row)) for row in rows], dtype=torch.int64)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut."""
        return [len(self.tokenizer(caption).input_ids) for caption in captions]


def new_text_model(sizes: dict[str, int], vocabulary: int) -> Qwen2Model:
    config = Qwen2Config(**sizes, vocab_size=vocabulary, pad_token_id=PAD_ID, use_sliding_window=False, max_position_embeddings=512)
    return Qwen2Model(config)


def encode_text(model: Qwen2Model, ids: Tensor) -> tuple[Tensor, Tensor]:
    """ids [B, T] → last hidden state [B, T, Ct] float32 and position ids [B, T]; what `TextConditioner` computes, with gradients."""
    mask = (ids != PAD_ID).long()
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    output = model(input_ids=ids, attention_mask=attention_mask(mask, 0), position_ids=positions, use_cache=False)
    return output.last_hidden_state.float(), mask.cumsum(dim=1) - 1


def drop_captions(hidden: Tensor, positions: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of dropped [B] bool become unconditional ones: hidden states and position ids all zero."""
    return hidden.masked_fill(dropped[:, None, None], 0.0), positions.masked_fill(dropped[:, None], 0)
