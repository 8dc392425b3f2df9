"""Which host is taken."""

from __future__ import annotations

from ..errors import InputError, MissingPackageError
from .cuda_python import CudaPython
from .faults import CudaStatus, explain
from .protocol import Driver
from .pycuda import PyCuda

AUTO = "auto"
HOSTS: dict[str, tuple[type[Driver], str]] = {
    "cuda-python": (CudaPython, "cuda"),
    "pycuda": (PyCuda, "pycuda"),
}
"""Host and the extra that installs it, the preferred one first: its wheels need no compiler and it has graphs itself."""


def open_driver(name: str = AUTO) -> Driver:
    """The host of that name, its driver initialised; "auto" takes the first that is installed.

    Raises MissingPackageError with the command that installs what is missing, GpuError without an NVIDIA driver.
    """
    if name not in (AUTO, *HOSTS):
        raise InputError(f"CUDA host {name!r} is unknown; expected one of {', '.join((AUTO, *HOSTS))}.")
    wanted = tuple(HOSTS) if name == AUTO else (name,)
    for candidate in wanted:
        try:
            return HOSTS[candidate][0]()
        except ImportError:
            continue
        except CudaStatus as status:
            raise explain(status, "starting CUDA") from status
    extra = HOSTS[wanted[0]][1]
    raise MissingPackageError(f"the GPU needs {' or '.join(wanted)}, which is not installed.", f"Run: pip install 'hart-edge[{extra}]'")
