"""What can be done on this machine, and what keeps the rest from working.

A backend works if it opens. That is tried only where nothing is known beforehand that must keep it from opening.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..backends import AUTO, BACKENDS, CPU, CUDA, candidates, open_backend
from ..bundle import Bundle
from ..errors import HartError, MissingPackageError
from ..ort import first_line
from ..ort_cuda_setup import check_provider
from ..trt.packages import CLASSIC, PACKAGES, RTX
from .gpu import GpuState, driver_lacks, gpu_lacks
from .lack import Lack, lack_of
from .packages import CORE, install_command, packages_of

DRAW = "generate --backend"
ORT_CUDA = "ort-cuda"
EXTRAS = {CUDA: "fused", ORT_CUDA: "gpu", RTX: "rtx", CLASSIC: "tensorrt"}
SMALL_ENGINE = "transition"
"""The engine of the bundled model that is opened to see whether engines open."""


@dataclass(frozen=True)
class Ability:
    """Something hart-edge does here, or would if it were not for `lacks`.

    Attributes:
        command: as typed after `hart-edge`.
        backend: of it; empty for a command that has none.
    """

    command: str
    backend: str
    lacks: tuple[Lack, ...]

    @property
    def works(self) -> bool:
        return not self.lacks


def look_at_abilities(state: GpuState, model: Path | None) -> list[Ability]:
    """Every backend in the order of `auto`, then the tools.

    Args:
        model: folder of a bundle, of which every backend opens one engine; None: backends are opened without.
    """
    drawing = [Ability(f"{DRAW} {name}", name, _backend_lacks(name, state, model)) for name in BACKENDS if name != AUTO]
    return [
        *drawing,
        Ability("build --backend tensorrt-rtx", RTX, _package_lacks("rtx", parts=False)),
        Ability("build --backend tensorrt", CLASSIC, (*gpu_lacks(state), *_package_lacks("tensorrt"))),
        Ability("export, verify, eval", "", _package_lacks("export")),
    ]


def choose(abilities: Iterable[Ability], model: Path | None = None) -> str | None:
    """The backend that `auto` takes for a bundle, None if not even the CPU works."""
    working = {ability.backend for ability in abilities if ability.works and ability.command.startswith(DRAW)}
    return next((name for name in candidates(AUTO, bundle=model) if name in working), None)


def _backend_lacks(name: str, state: GpuState, model: Path | None) -> tuple[Lack, ...]:
    """What is known beforehand, else what opening says; if either says something, also the packages that do not fit."""
    lacks = _known_lacks(name, state) or _opening_lacks(name, model)
    return (*lacks, *_package_lacks(EXTRAS.get(name, CORE))) if lacks else ()


def _known_lacks(name: str, state: GpuState) -> list[Lack]:
    if name == CPU:
        return []
    if name in (CUDA, *PACKAGES):
        return gpu_lacks(state) + driver_lacks(state)
    return gpu_lacks(state) + (_build_lacks() if name == ORT_CUDA else [])


def _build_lacks() -> list[Lack]:
    """Whether ONNX Runtime is its GPU build; whether the driver fits that build shows when the backend is opened."""
    try:
        check_provider()
    except MissingPackageError as error:
        return [lack_of(error)]
    return []


def _package_lacks(extra: str, parts: bool = True) -> tuple[Lack, ...]:
    """parts: with what the extra brings through other extras, too."""
    wrong = [str(package) for package in packages_of(extra, parts) if not package.fits]
    return (Lack(f"packages: {'; '.join(wrong)}.", install_command(extra)),) if wrong else ()


def _opening_lacks(name: str, model: Path | None) -> list[Lack]:
    """Open the backend and one engine, and close them again."""
    try:
        with closing(open_backend(name, threads=0)) as backend:
            if model is not None:
                path = Bundle(model, check_files=False).engine(SMALL_ENGINE)
                backend.open_engine(path, SMALL_ENGINE).close()
    except HartError as error:
        return [lack_of(error)]
    except Exception as error:  # a damaged package may raise anything, and the rest is to be reported all the same
        return [Lack(f"opening it raised {type(error).__name__}: {first_line(error)}")]
    return []
