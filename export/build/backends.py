"""The two TensorRT packages. Their Python API is the same; what differs is this table."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from hart_edge.runtime.errors import EngineError, InputError, MissingPackageError

NATIVE = "native"  # the card of the machine that builds


@dataclass(frozen=True)
class BuildBackend:
    """One TensorRT package.

    Attributes:
        name: as the command line and the sidecar say it.
        module: name to import.
        extra: the extra of hart-edge that installs it.
        targets: what an engine can be built for, in the order in which the sidecar lists them. All targets share one engine
            file. `native` alone: the package has no ahead-of-time targets, and building needs the card.
    """

    name: str
    module: str
    extra: str
    targets: tuple[str, ...]

    def require(self) -> None:
        """MissingPackageError unless the package is installed; imports nothing."""
        if importlib.util.find_spec(self.module) is None:
            raise MissingPackageError(
                f"--backend {self.name} needs {self.module}, which is not installed.", f"Run: pip install 'hart-edge[{self.extra}]'"
            )

    def load(self) -> Any:
        """The module; EngineError when its libraries do not load."""
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise EngineError(
                f"{self.module} does not load: {error}.", f"Install it again: pip install 'hart-edge[{self.extra}]'"
            ) from error


BACKENDS = {
    backend.name: backend
    for backend in (
        BuildBackend("tensorrt-rtx", "tensorrt_rtx", "rtx", ("sm75", "sm80", "sm86", "sm89", "sm120")),
        BuildBackend("tensorrt", "tensorrt", "tensorrt", (NATIVE,)),
    )
}


def check_targets(backend: str, text: str | None) -> tuple[str, ...]:
    """ "sm89,sm75" as ("sm75", "sm89"), None as all targets of the backend; InputError for an unknown backend or target."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
    known = BACKENDS[backend].targets
    wanted = set(known if text is None else text.split(","))
    if unknown := sorted(wanted - set(known)):
        raise InputError(f"target {unknown[0]!r} is not one that {backend} builds for; expected a list of {', '.join(known)}.")
    return tuple(target for target in known if target in wanted)
