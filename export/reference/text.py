"""Text conditioning with transformers: tokenizer and Qwen2 decoder, system prompt optional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, Qwen2Config, Qwen2Model
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from hart_edge.runtime.errors import CheckpointError

from .hart import Context


@dataclass(frozen=True)
class TextInput:
    """Tokenised prompts: ids and mask [B, T] int64, position ids `cumsum(mask) − 1`."""

    ids: Tensor
    mask: Tensor

    @property
    def position_ids(self) -> Tensor:
        return self.mask.cumsum(dim=1) - 1


class TextConditioner:
    """The text model of a checkpoint.

    Args:
        folder: transformers folder of a Qwen2 decoder and its tokenizer.
        context_tokens: T.
        system_prompt: put in front of every prompt, its own positions dropped from the output; None for none.
    """

    def __init__(self, folder: Path, context_tokens: int, system_prompt: str | None = None) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.model = load_text_model(folder)
        self.context_tokens = context_tokens
        self.system_ids = self._system_ids(system_prompt)

    def tokenize(self, prompts: Sequence[str]) -> TextInput:
        """Pad right with the pad token to T, truncate at T."""
        pad = self.tokenizer.pad_token_id
        rows = [self.tokenizer(prompt).input_ids[: self.context_tokens] for prompt in prompts]
        ids = torch.tensor([row + [pad] * (self.context_tokens - len(row)) for row in rows], dtype=torch.int64)
        return TextInput(ids, (ids != pad).long())

    @torch.inference_mode()
    def encode(self, text: TextInput) -> Tensor:
        """ids [B, T] → last hidden state after the final norm, [B, T, Ct] float32; padded positions included.

        The result lies where the model does.
        """
        batch, skip, device = text.ids.shape[0], len(self.system_ids), self.model.device
        ids = torch.cat([self.system_ids.expand(batch, skip), text.ids], dim=1).to(device)
        allowed = attention_mask(text.mask.to(device), skip)
        positions = torch.arange(ids.shape[1], device=device).expand(batch, -1)
        rows = torch.cat([causal(skip, ids.shape[1]).to(device).expand(batch, 1, -1, -1), allowed], dim=2)
        output = self.model(input_ids=ids, attention_mask=rows, position_ids=positions, use_cache=False)
        return output.last_hidden_state[:, skip:].float()

    def __call__(self, prompts: Sequence[str]) -> Context:
        text = self.tokenize(prompts)
        return Context(self.encode(text), text.position_ids)

    def _system_ids(self, system_prompt: str | None) -> Tensor:
        ids = self.tokenizer(system_prompt).input_ids[: self.context_tokens] if system_prompt else []
        return torch.tensor(ids, dtype=torch.int64)


def causal(rows: int, total: int) -> Tensor:
    """Rows 0…rows−1 of the causal mask over `total` keys, [1, 1, rows, total] bool."""
    return torch.ones(rows, total, dtype=torch.bool).tril()[None, None]


def attention_mask(mask: Tensor, skip: int) -> Tensor:
    """What each of the T prompt positions may attend to: mask [B, T] → [B, 1, T, skip + T] bool.

    Causal over system prompt and prompt, padded keys left out. A row that could attend to nothing (an empty prompt
    without system prompt) attends to everything, as transformers' masks did when HART was published.
    """
    batch, tokens = mask.shape
    ones = torch.ones(batch, skip, dtype=torch.bool, device=mask.device)
    keys = torch.cat([ones, mask.bool()], dim=1)[:, None, None, :]
    allowed = keys & torch.ones(tokens, skip + tokens, dtype=torch.bool, device=mask.device).tril(skip)
    return allowed | ~allowed.any(dim=-1, keepdim=True)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{folder} has no usable tokenizer: {error}", "Give a Qwen2 text-model folder with --text-model.") from error
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"the tokenizer in {folder} has no pad token.", "Set pad_token in its tokenizer_config.json.")
    return tokenizer


def load_text_model(folder: Path) -> Qwen2Model:
    """The decoder in float32, evaluation mode; CheckpointError names a configuration value that is not supported."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder} has no usable config.json: {error}", "Give a Qwen2 text-model folder with --text-model."
        ) from error
    check_text_config(config, str(folder))
    disable_progress_bar()
    try:
        return Qwen2Model.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except Exception as error:
        raise CheckpointError(f"{folder}: the text model's weights do not load: {error}", "Download the folder again.") from error


def check_text_config(config: Qwen2Config, where: str) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    expected = {
        "model_type": (config.model_type, "qwen2"),
        "hidden_act": (getattr(config, "hidden_act", None), "silu"),
        "use_sliding_window": (bool(getattr(config, "use_sliding_window", False)), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for key, (value, supported) in expected.items():
        if value != supported:
            raise CheckpointError(
                f"{where}/config.json: {key} = {value!r} is not supported; expected {supported!r}.",
                "HART's text encoder is a Qwen2 decoder.",
            )
