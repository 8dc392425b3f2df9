"""The door from the command line to `hart_edge.export` and `hart_edge.calibration`, whose packages are optional; loaded only when used."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import MissingPackageError


def load(module: str, extra: str = "export", package: str = "export") -> Any:
    """A module of hart_edge.export, or of `package`; MissingPackageError tells how to install what it needs, which `extra` brings."""
    try:
        return importlib.import_module(f"hart_edge.{package}.{module}")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"this command needs {error.name}, which is not installed.", f"Run: pip install 'hart-edge[{extra}]'"
        ) from error
