"""The two TensorRT packages. Their Python API is the same; what differs is in this table and where it is asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError, MissingPackageError

RTX, CLASSIC = "tensorrt-rtx", "tensorrt"
RTX_CARDS = (75, 80, 86, 89, 120, 121)
"""Compute capabilities that TensorRT-RTX runs on; it refuses Hopper (90) and the datacenter's Blackwell (100)."""

A100 = 80


@dataclass(frozen=True)
class TensorRtPackage:
    """One TensorRT package.

    Attributes:
        name: as the command line and the sidecar say it.
        module: name to import.
        extra: the extra of hart-edge that installs it.
    """

    name: str
    module: str
    extra: str

    def require(self) -> None:
        """MissingPackageError unless the package is installed; imports nothing."""
        if importlib.util.find_spec(self.module) is None:
            raise MissingPackageError(
                f"backend {self.name} needs {self.module}, which is not installed.", f"Run: pip install 'hart-edge[{self.extra}]'"
            )

    def version(self) -> str:
        """Of the installed package, as the module says it too."""
        return importlib.metadata.version(self.module)

    def load(self) -> Any:
        """The module; EngineError when its libraries do not load."""
        return self._import(self.module)

    def load_plugins(self) -> Any:
        """The module that describes plugins ahead of time."""
        return self._import(f"{self.module}.plugin")

    def _import(self, name: str) -> Any:
        self.require()
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise EngineError(f"{name} does not load: {error}.", f"Install it again: pip install 'hart-edge[{self.extra}]'") from error


PACKAGES = {RTX: TensorRtPackage(RTX, "tensorrt_rtx", "rtx"), CLASSIC: TensorRtPackage(CLASSIC, "tensorrt", "tensorrt")}


def package_for(capability: int) -> str:
    """The package that is meant for a card: TensorRT for datacenter cards, TensorRT-RTX for the others."""
    return RTX if capability in RTX_CARDS and capability != A100 else CLASSIC
