"""The backend `cuda`: one GPU, one bundle, and the loop that stays on it."""

from __future__ import annotations

from pathlib import Path

from ..bundle import Bundle
from ..device_memory import DeviceMemory
from ..engine import Engine
from ..scale_loop import ScaleLoop
from .context import FusedContext
from .engines import open_fused
from .loop import FusedLoop
from .model import FusedModel
from .stages import foresee


class FusedBackend:
    """Implements `Backend`, and makes the scale loop itself (`ResidentBackend`).

    Args:
        context: a GPU that is open already; closed with the backend.
        low_vram: hold only what the present phase of a generation needs, and read the rest from the file again.

    Raises MissingPackageError for what is not installed, GpuError for a GPU or a driver that cannot work.
    """

    name = "cuda"

    def __init__(self, context: FusedContext | None = None, low_vram: bool = False) -> None:
        self._context, self._low_vram = context or FusedContext(), low_vram
        self.memory = DeviceMemory(self._context.device, self._context.stream)
        self._model: FusedModel | None = None
        self._loop: FusedLoop | None = None

    def open_engine(self, path: Path, name: str) -> Engine:
        """The engine of a bundle, whose folder holds `path`; its weights go to the GPU with the first one."""
        return open_fused(name, self._model_of(path.parent), self.memory)

    def make_loop(self, loop: ScaleLoop) -> ScaleLoop:
        """The resident loop of the bundle that the engines were opened from."""
        if self._model is None:
            raise ValueError("no engine has been opened; the loop is made of a bundle's engines")
        self._loop = FusedLoop(self._model, self.memory, loop)
        return self._loop

    def release(self) -> None:
        """Free what the bundle takes; the GPU stays open. Idempotent."""
        if self._loop is not None:
            self._loop.close()
        self.memory.trim()
        if self._model is not None:
            self._model.close()
        self._model = self._loop = None

    def close(self) -> None:
        """Free everything on the GPU. Idempotent."""
        self.release()
        self._context.close()

    def _model_of(self, folder: Path) -> FusedModel:
        if self._model is None or self._model.bundle.root != folder:
            if self._model is not None:
                raise ValueError(f"this backend holds {self._model.bundle.root}; open another one for {folder}")
            self._model = FusedModel(self._context, Bundle(folder, check_files=False), self._low_vram, foresee)
        return self._model
