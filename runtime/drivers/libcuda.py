"""The few driver calls that PyCUDA 2026.1 lacks, through ctypes: CUDA graphs, the names of errors, one pop.

The alternative, refusing graphs under PyCUDA, would make that host several times slower at the small scales, where
launching takes longer than computing. A stream is a plain address in both, so the two mix.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from .faults import NO_DRIVER, CudaStatus

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
HIGHEST_STATUS = 1000  # CUDA_ERROR_UNKNOWN is 999 and the last one


class LibCuda:
    """Handles are addresses. CudaStatus if the library is missing or refuses a call."""

    def __init__(self, library: Any = None) -> None:
        try:
            self._library = library or ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise CudaStatus(LIBRARY, NO_DRIVER, str(error)) from error

    def _do(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CudaStatus(name, self._say("cuGetErrorName", status), self._say("cuGetErrorString", status))

    def _say(self, function: str, status: int) -> str:
        text = ctypes.c_char_p()
        getattr(self._library, function)(status, ctypes.byref(text))
        return (text.value or b"").decode()

    def names(self) -> dict[str, str]:
        """Name of every status by the driver's description of it: PyCUDA's exceptions hold the description only.

        Of statuses described alike, such as those of an invalid image and an invalid source, the lowest.
        """
        found: dict[str, str] = {}
        for status in range(1, HIGHEST_STATUS):
            if name := self._say("cuGetErrorName", status):
                found.setdefault(self._say("cuGetErrorString", status), name)
        return found

    def pop(self) -> None:
        """Take the current context off the driver's stack, unseen by PyCUDA."""
        self._do("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def begin_capture(self, stream: int) -> None:
        self._do("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), THREAD_LOCAL)

    def end_capture(self, stream: int) -> ctypes.c_void_p:
        graph = ctypes.c_void_p()
        self._do("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        return graph

    def destroy_capture(self, capture: ctypes.c_void_p) -> None:
        self._do("cuGraphDestroy", capture)

    def instantiate(self, capture: ctypes.c_void_p) -> ctypes.c_void_p:
        graph = ctypes.c_void_p()
        self._do("cuGraphInstantiateWithFlags", ctypes.byref(graph), capture, ctypes.c_ulonglong(0))
        return graph

    def launch_graph(self, graph: ctypes.c_void_p, stream: int) -> None:
        self._do("cuGraphLaunch", graph, ctypes.c_void_p(stream))

    def destroy_graph(self, graph: ctypes.c_void_p) -> None:
        self._do("cuGraphExecDestroy", graph)
