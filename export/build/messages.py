"""TensorRT's log: the node under way, errors, and every warning that nobody has explained."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hart_edge.runtime.errors import EngineError

EXPECTED = {  # warning → why it is no fault; every other warning stops the build
    r".*Make sure input \w+ has Int64 binding\.": "token ids, positions, lengths and scale numbers are int64 in the bundle's graphs",
}

_NODE = re.compile(r"Parsing node: (.+)")


class Messages:
    """Sorts log lines; `node` is told of each node that the parser begins."""

    def __init__(self, node: Callable[[str], None]) -> None:
        self.faults: list[str] = []
        self._node = node

    def take(self, severity: str, text: str) -> None:
        if severity == "VERBOSE":
            if match := _NODE.fullmatch(text):
                self._node(match[1])
        elif severity != "INFO" and not any(re.fullmatch(pattern, text, re.DOTALL) for pattern in EXPECTED):
            self.faults.append(text.strip())

    def check(self, what: str) -> None:
        """EngineError with everything that was complained of while doing `what`."""
        if self.faults:
            raise EngineError(
                f"TensorRT complained while {what}: {' | '.join(self.faults)}",
                "Unexpected warnings stop the build, because TensorRT drops what it does not support with no more than a warning.",
            )


def logger(trt: Any, messages: Messages) -> Any:
    """A logger of the TensorRT module that writes into `messages`. A process has one: TensorRT ignores later ones."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.take(severity.name, text)

    return Logger()
