"""Prompt to token ids, with the `tokenizers` library alone. Knows nothing of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .errors import BundleError, InputError


@dataclass(frozen=True)
class Tokens:
    """B prompts, padded right to T.

    Attributes:
        ids: [B, T] int64.
        mask: [B, T] int64, 1 where the id is not the pad token.
        dropped: per prompt, the text beyond T tokens, empty when all fitted.
    """

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    dropped: tuple[str, ...]

    @property
    def position_ids(self) -> npt.NDArray[np.int64]:
        """`cumsum(mask) − 1`, [B, T]; −1 everywhere for an empty prompt."""
        return np.cumsum(self.mask, axis=1) - 1


class PromptTokenizer:
    """Args: path of a `tokenizer.json`; the pad token's id; T, the number of context tokens."""

    def __init__(self, path: Path, pad_token_id: int, context_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"{path} is not a tokenizer: {error}.", "Export the bundle again.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pad, self._length = pad_token_id, context_tokens

    def encode(self, prompts: Sequence[str]) -> Tokens:
        """Tokenise, truncate at T, pad right; an empty prompt gives only pad tokens."""
        ids = np.full((len(prompts), self._length), self._pad, np.int64)
        dropped = []
        for row, prompt in zip(ids, prompts, strict=True):
            encoded = self._tokenizer.encode(check_prompt(prompt)).ids
            row[: len(encoded)] = encoded[: self._length]
            dropped.append(self._tokenizer.decode(encoded[self._length :], skip_special_tokens=False))
        return Tokens(ids, (ids != self._pad).astype(np.int64), tuple(dropped))


def check_prompt(prompt: str) -> str:
    """Prompts are any Unicode text but NUL, which PNG metadata cannot hold, and lone surrogates, which are no text."""
    if "\0" in prompt:
        raise InputError(f"the prompt has a NUL character at position {prompt.index(chr(0))}.", "Remove it.")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt has a lone surrogate at position {error.start}; expected Unicode text.", "Check its encoding."
        ) from None
    return prompt
