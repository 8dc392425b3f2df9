"""The CUDA driver through cuda-bindings or through PyCUDA, behind one Protocol. `runtime/cuda.py` is the door to it.

Why neither cuda.core nor a binding of our own: cuda.core (1.2) has no call for free memory, none for copies from NumPy
and none for the dynamic shared memory above 48 KiB, so it would need cuda-bindings beside it; its objects own
what they wrap, which the PyCUDA host cannot share; it wants 19 MB more. One flat Protocol makes a host a list
of one-line calls, and lifetimes, checks and messages exist once. A binding of the driver through ctypes would serve
both, but then neither of the two packages would be used.
"""

from .choose import AUTO, HOSTS, open_driver
from .faults import CudaStatus, explain
from .protocol import Driver, Handle

__all__ = ["AUTO", "HOSTS", "CudaStatus", "Driver", "Handle", "explain", "open_driver"]
