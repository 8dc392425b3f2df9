"""The one door for exceptions of NVIDIA's libraries: each becomes an error that says what was done and what to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..cuda import Device
from ..errors import EngineError, GpuError, GpuLostError, GpuMemoryError, HartError
from .workspace import REMEDY

RUNNING = "Run `hart-edge bench --backend ort-cuda`, or use the CPU."
OPENING = "Run: pip install -U 'hart-edge[fused]'; `hart-edge doctor` shows what does not fit. Or use the backend ort-cuda or cpu."
_OUT_OF_MEMORY = ("ALLOC_FAILED", "ALLOCATION_FAILED", "out of memory")


def checked(device: Device, doing: str, function: Callable[..., Any], *arguments: Any, remedy: str = RUNNING, **named: Any) -> Any:
    """Call a library.

    Its exceptions have types of their own. They become a GpuLostError when the GPU is what is wrong, a GpuMemoryError when its
    memory is, else an EngineError; ours pass.
    """
    try:
        return function(*arguments, **named)
    except HartError:
        raise
    except Exception as error:
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise GpuMemoryError(f"{doing} failed: {error}.", REMEDY) from error
        raise_if_lost(device)
        raise EngineError(f"{doing} failed: {error}.", remedy) from error


def raise_if_lost(device: Device) -> None:
    """GpuLostError when the device answers no more."""
    try:
        device.synchronize()
    except GpuLostError:
        raise
    except GpuError:  # a capture forbids to wait
        return


def closed(device: Device, doing: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Free something of a library; on a lost GPU there is nothing to free."""
    with suppress(GpuLostError), device.active():
        checked(device, doing, function, *arguments)
