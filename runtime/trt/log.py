"""What TensorRT says, kept for error messages."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any

KEPT = 8


class Log:
    """The last errors and warnings, newest last.

    Attributes:
        logger: TensorRT's object, which must live as long as anything of TensorRT does.
    """

    def __init__(self, trt: Any) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT)
        self.logger = _logger(trt, self._lines)

    def take(self) -> str:
        """What was said since the last call, in one line."""
        lines = list(self._lines)
        self._lines.clear()
        return " | ".join(lines) or "TensorRT gives no reason"


def _logger(trt: Any, lines: deque[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                lines.append(text.strip())

    return Logger()


@cache
def log_of(trt: Any) -> Log:
    """The one log of a module in this process: TensorRT ignores every later logger."""
    return Log(trt)
