"""A double of the fused engine's measured plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class Chosen:
    """Stands for `Plans`: one candidate is the fastest, what was kept is found, and what is kept is seen.

    Attributes:
        kept: facts and data by description.
        tried: how many candidates ran.
    """

    def __init__(self, fastest: int | None = 0, kept: dict[str, tuple[dict[str, Any], bytes]] | None = None) -> None:
        self._fastest, self.kept, self.tried = fastest, {} if kept is None else kept, 0

    def find(self, what: str) -> tuple[dict[str, Any], bytes] | None:
        return self.kept.get(what)

    def keep(self, what: str, facts: dict[str, Any], data: bytes) -> None:
        self.kept[what] = facts, data

    def fastest(self, candidates: Iterable[int], run: Callable[[int], None]) -> int | None:
        for candidate in candidates:
            run(candidate)
            self.tried += 1
        return self._fastest
