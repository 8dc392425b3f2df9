"""Which packages an install needs, and which of them are there. Reads their metadata and imports none."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from ..ort_cuda_setup import RESTORE

CORE = ""
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    CORE: (
        "numpy>=2.0",
        "onnxruntime>=1.32",
        "tokenizers>=0.21",
        "pillow>=11",
        "safetensors>=0.5",
        "threadpoolctl>=3.5",
        "typer>=0.15",
        "rich>=13",
    ),
    "nvrtc": ("nvidia-cuda-nvrtc>=13.3", "cuda-pathfinder>=1.4", "platformdirs>=4"),
    "cuda": ("cuda-bindings>=13",),
    "gpu": ("onnxruntime-gpu>=1.31",),
    "fused": ("nvmath-python>=1.0", "nvidia-cublas>=13.0", "nvidia-cudnn-frontend>=1.32", "nvidia-cudnn-cu13>=9.19"),
    "rtx": ("tensorrt-rtx>=1.7", "onnx>=1.20"),
    "tensorrt": ("tensorrt>=11.4", "onnx>=1.20"),
    "export": (
        "torch==2.13.0",
        "onnx>=1.20",
        "onnxscript>=0.7",
        "transformers>=5",
        "huggingface_hub>=1",
        "scikit-image>=0.25",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "platformdirs>=4",
    ),
}
"""By extra, as pyproject.toml has them (a test compares the two): an application may ship without metadata of its own."""

PARTS = {"cuda": ("nvrtc",), **{extra: ("cuda", "nvrtc") for extra in ("gpu", "fused", "rtx", "tensorrt")}}
"""Other extras that an extra brings."""

_REQUIREMENT = re.compile(r"([\w.-]+)(>=|==)([\d.]+)")


@dataclass(frozen=True)
class Package:
    """One requirement and what is installed.

    Attributes:
        name: of the distribution.
        expected: such as ">=2.0".
        extra: of hart-edge, that brings it; empty for the core install.
        version: None if it is not installed.
    """

    name: str
    expected: str
    extra: str
    version: str | None

    @property
    def fits(self) -> bool:
        """Whether it is installed in a version that is expected."""
        if self.version is None:
            return False
        relation, wanted = self.expected[:2], _numbers(self.expected[2:])
        found = _numbers(self.version)
        return found == wanted if relation == "==" else found >= wanted

    def __str__(self) -> str:
        return f"{self.name} {self.version or 'absent'}, expected {self.expected}"


def packages_of(extra: str, parts: bool = True) -> list[Package]:
    """What an extra needs beside the core install, the extras that it brings included unless `parts` is False."""
    return [_look_up(text, part) for part in (extra, *(PARTS.get(extra, ()) if parts else ())) for text in REQUIREMENTS[part]]


def all_packages() -> list[Package]:
    """Everything that any extra needs, each package once."""
    found: dict[str, Package] = {}
    for extra, texts in REQUIREMENTS.items():
        for text in texts:
            package = _look_up(text, extra)
            found.setdefault(package.name, package)
    return list(found.values())


def install_command(extra: str) -> str:
    """What installs an extra; pip takes what is too old for it, too."""
    command = f"pip install 'hart-edge[{extra}]'" if extra else "pip install hart-edge"
    return f"{command} && {RESTORE}" if extra == "gpu" else command


def _look_up(text: str, extra: str) -> Package:
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        raise ValueError(f"requirement {text!r} is not of the form NAME>=VERSION or NAME==VERSION")
    name, relation, wanted = match.groups()
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return Package(name, relation + wanted, extra, version)


def _numbers(version: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" as (2, 13); zeros at the end mean nothing."""
    numbers = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
