"""The backends `tensorrt-rtx` and `tensorrt`: one GPU, and the engines that were built for a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hart_edge.plugins.adapter import Faults
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.plugins.plugin import deregister_plugins, register_plugins

from ..bundle import Bundle
from ..certificate import Certificate, read_certificate
from ..cuda import Device
from ..device_memory import DeviceMemory
from ..device_sampling import sampled_on
from ..engine import Engine
from ..errors import EngineError, GpuError
from ..scale_loop import ScaleLoop
from .cache import CacheKey, cache_path
from .checks import HEADER, check_card, check_header, map_engine
from .engine import Scratch, Shared, TrtEngine
from .launcher import HOST, DeviceLauncher
from .log import log_of
from .packages import PACKAGES, RTX, RTX_CARDS
from .session import Loader, Session
from .sidecar import Sidecar, engine_folders, find_engines, read_sidecar, rebuild_command, staleness


class TrtBackend:
    """Implements `Backend`, `ResidentBackend` and `CertifiedBackend`.

    Args:
        name: of `PACKAGES`.
        device: a GPU that is open already; closed with the backend.

    Raises MissingPackageError for what is not installed, GpuError for a GPU or a driver that cannot work.
    """

    def __init__(self, name: str, device: Device | None = None) -> None:
        self.name = name
        PACKAGES[name].require()
        self._device = device or Device(host=HOST)
        try:
            info = self._device.info
            if name == RTX and info.capability not in RTX_CARDS:
                raise GpuError(f"TensorRT-RTX does not run on {info.name} (SM{info.capability}).", "Use --backend tensorrt or cuda.")
            self._trt = PACKAGES[name].load()
            log = log_of(self._trt)
            with self._device.active():
                self._loader = Loader(self._device, self._trt, self._trt.Runtime(log.logger), log)
            self.memory = DeviceMemory(self._device, self._device.stream())
        except BaseException:
            self._device.close()
            raise
        self._scratch, self._faults = Scratch(self.memory), Faults()
        self._creators: list[Any] = []
        self._sidecar: Sidecar | None = None

    def open_engine(self, path: Path, name: str) -> Engine:
        """The engine of a bundle, whose folder holds `path`; EngineError for one that is missing, damaged, stale or for another card."""
        sidecar = self._sidecar_of(path.parent)
        facts = sidecar.engines.get(name)
        remedy = rebuild_command(path.parent, self.name)
        if facts is None:
            raise EngineError(f"{sidecar.folder} has no engine {name}.", remedy)
        file = sidecar.folder / facts.file
        with map_engine(file, facts) as data:
            cache = None
            if self.name == RTX:
                check_header(file, data[:HEADER], self._trt.__version__, self._device.info)
                cache = self._cache(sidecar, name, facts.sha256)
            self._register(facts.plugins)
            session = Session(self._loader, name, data, cache)
        return TrtEngine(name, facts, session, Shared(self.memory, self._scratch, self._faults, remedy))

    def make_loop(self, loop: ScaleLoop) -> ScaleLoop:
        """A loop that samples on the GPU; `loop` itself, with HartWarning, where the kernel for that cannot be made."""
        return sampled_on(self._device, self.memory, loop)

    def certificate(self, bundle: Path) -> Certificate:
        """Of the engines, beside them."""
        folder = find_engines(bundle, self.name)
        return read_certificate(bundle, folder)

    def close(self) -> None:
        """Free everything on the GPU; the engines must be closed before. Idempotent."""
        if self._creators:
            deregister_plugins(self._trt, self._creators)
            self._creators = []
        self._device.close()

    def _sidecar_of(self, bundle: Path) -> Sidecar:
        """Read and checked once: whether it belongs to the bundle, the installed TensorRT and the card."""
        if self._sidecar is None:
            folder = find_engines(bundle, self.name)
            if folder is None:
                looked = " or ".join(map(str, engine_folders(bundle, self.name)))
                raise EngineError(f"there are no {self.name} engines in {looked}.", f"Run: hart-edge build {bundle} --backend {self.name}")
            sidecar = read_sidecar(folder)
            reason = staleness(sidecar, Bundle(bundle, check_files=False), self._trt.__version__)
            if reason:
                raise EngineError(f"{reason}.", rebuild_command(bundle, self.name))
            check_card(sidecar, self._device.info)
            self._sidecar = sidecar
        return self._sidecar

    def _cache(self, sidecar: Sidecar, name: str, digest: str) -> tuple[Path, CacheKey]:
        return cache_path(sidecar.folder, name), CacheKey.of(self._device.info, self._trt.__version__, digest)

    def _register(self, names: Sequence[str]) -> None:
        """Python plugins of an engine, all at once: which engine comes next is not known."""
        if not names or self._creators:
            return
        launcher = DeviceLauncher(self._device)
        launcher.load()
        self._creators = register_plugins(self._trt, GRAPH_OPS.values(), launcher, self._faults)
