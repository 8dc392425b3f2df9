"""Engines that a command needs: built before it starts, or anew when they no longer fit, with the reason told."""

from __future__ import annotations

from pathlib import Path

from ..bundle import SIDECAR, Bundle
from ..doctor.gpu import look_at_gpus
from ..errors import EngineError, InputError
from ..trt.checks import check_card
from ..trt.packages import PACKAGES
from ..trt.sidecar import Sidecar, place_for, read_sidecar, staleness
from . import export_tools
from .output import complain, step_progress

BATCH = 4
"""The largest number of pictures at a time of engines that nobody asked for in another size, as of `hart-edge build`."""


def ensure_engines(bundle: Bundle, backend: str, batch: int = 1) -> Path | None:
    """Folder of the engines of a TensorRT backend, built if they are missing, stale or too small; None for other backends.

    Engines of a bundle that cannot be written lie in the user's cache folder.
    """
    if backend not in PACKAGES:
        return None
    PACKAGES[backend].require()
    folder = place_for(bundle.root, backend)
    reason = reason_to_build(bundle, folder, backend, batch)
    if reason:
        complain("note", f"engines are built: {reason}.")
        tools = export_tools.load("build", extra=PACKAGES[backend].extra)
        with step_progress() as progress:
            tools.build_bundle(
                bundle, folder, backend, batch=max(batch, BATCH), plugins=_plugins(folder), overwrite=folder.exists(), progress=progress
            )
    return folder


def reason_to_build(bundle: Bundle, folder: Path, backend: str, batch: int) -> str:
    """Why the engines must be built; empty when those that are there will do."""
    if not (folder / SIDECAR).is_file():
        if folder.exists():
            raise InputError(f"{folder} holds no engines and is not overwritten.", "Remove it yourself.")
        return f"there are none in {folder}"
    try:
        sidecar = read_sidecar(folder)
    except EngineError as error:
        return error.message.rstrip(".")
    if sidecar.batch < batch:
        return f"those in {folder} are for {sidecar.batch} pictures at a time; {batch} are asked for"
    return staleness(sidecar, bundle, PACKAGES[backend].version()) or _unfit(sidecar)


def _unfit(sidecar: Sidecar) -> str:
    """Why the engines are for another card than the one there is; empty without a card."""
    for gpu in look_at_gpus().gpus[:1]:
        try:
            check_card(sidecar, gpu)
        except EngineError as error:
            return error.message.rstrip(".")
    return ""


def _plugins(folder: Path) -> str:
    """Those of the engines that are replaced; none if that cannot be read."""
    try:
        engines = read_sidecar(folder).engines.values()
    except EngineError:
        return "none"
    return ",".join(sorted({name for engine in engines for name in engine.plugins})) or "none"
