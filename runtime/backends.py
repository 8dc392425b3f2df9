"""Which engine implementation a backend name stands for."""

from __future__ import annotations

from pathlib import Path

from .engine import Engine
from .errors import InputError
from .ort import OrtEngine

BACKENDS = ("auto", "cpu")


def check_backend(backend: str) -> str:
    """Returns the backend; InputError lists the ones there are."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
    return backend


def open_engine(path: Path, name: str, backend: str, threads: int) -> Engine:
    """Load one engine file; "auto" takes the CPU, the only backend of this version."""
    check_backend(backend)
    return OrtEngine(path, name, threads)
