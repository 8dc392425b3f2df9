"""The `hart-edge` command. Exit codes: 0 done, 1 a gate failed, 2 bad input, 130 cancelled."""

from .app import main

__all__ = ["main"]
