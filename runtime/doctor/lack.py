"""One thing that is missing or wrong, and its remedy."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HartError


@dataclass(frozen=True)
class Lack:
    """What is wrong, and the command or step that mends it."""

    what: str
    remedy: str = ""


def lack_of(error: HartError) -> Lack:
    """An error's message and hint."""
    return Lack(error.message, error.hint.removeprefix("Run: "))
