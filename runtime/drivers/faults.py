"""What the driver's status codes mean to a user. Knows nothing of which host reported them."""

from __future__ import annotations

from ..errors import GpuError, GpuLostError, GpuMemoryError


class CudaStatus(Exception):
    """A call that the driver refused; `Device` turns it into one of the errors of runtime/errors.py.

    Args:
        call: function of the driver, such as "cuMemAlloc".
        name: status, such as "CUDA_ERROR_OUT_OF_MEMORY", or one of the three names below.
        text: the driver's or the host's own words.
    """

    def __init__(self, call: str, name: str, text: str = "") -> None:
        super().__init__(f"{call}: {name} {text}".rstrip())
        self.call, self.name, self.text = call, name, text


NO_DRIVER = "no driver library"
OLD_DRIVER = "function missing from the driver library"
UNKNOWN = "unknown status"

LOST = frozenset(
    f"CUDA_ERROR_{name}"
    for name in """ILLEGAL_ADDRESS LAUNCH_FAILED LAUNCH_TIMEOUT ILLEGAL_INSTRUCTION MISALIGNED_ADDRESS INVALID_ADDRESS_SPACE
    INVALID_PC HARDWARE_STACK_ERROR ASSERT ECC_UNCORRECTABLE NVLINK_UNCORRECTABLE CONTEXT_IS_DESTROYED DEINITIALIZED
    CONTAINED EXTERNAL_DEVICE""".split()
)
"""After these the context answers every call with an error. A process gets a new one only by starting again."""

DRIVER_PROBLEMS = frozenset(
    {OLD_DRIVER, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "CUDA_ERROR_STUB_LIBRARY"}
)
WRONG_BINARY = frozenset(
    f"CUDA_ERROR_{name}" for name in "NO_BINARY_FOR_GPU INVALID_IMAGE INVALID_PTX INVALID_SOURCE UNSUPPORTED_PTX_VERSION".split()
)
UPDATE = "Install a current NVIDIA driver and restart."


def explain(status: CudaStatus, doing: str, free: int | None = None, total: int | None = None) -> GpuError:
    """The error for a status.

    Args:
        doing: what was asked for, as in "allocating 3.0 GiB".
        free, total: bytes of device memory, if known.
    """
    said = f"({status.call}: {status.name}{': ' + status.text if status.text else ''})"
    if status.name == "CUDA_ERROR_OUT_OF_MEMORY":
        known = f"{gibibytes(free)} of {gibibytes(total)} are free" if free is not None and total is not None else "too little is free"
        remedy = "Close other programs that use the GPU, or use a smaller batch, a smaller model or the CPU."
        return GpuMemoryError(f"{doing} failed: out of GPU memory; {known}.", remedy)
    if status.name in LOST:
        remedy = "This process can go on without it: close the pipeline and use the CPU. To use the GPU again, restart the process."
        return GpuLostError(f"the GPU was lost while {doing} {said}.", remedy)
    if status.name == NO_DRIVER:
        return GpuError(f"there is no NVIDIA driver on this machine {said}.", f"{UPDATE} Or use the CPU.")
    if status.name == "CUDA_ERROR_NO_DEVICE":
        return GpuError(f"the NVIDIA driver sees no GPU {said}.", "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU.")
    if status.name in DRIVER_PROBLEMS:
        return GpuError(f"the NVIDIA driver does not fit: {doing} failed {said}.", UPDATE)
    if status.name in WRONG_BINARY:
        return GpuError(f"{doing} failed: the compiled code does not fit this GPU or driver {said}.", UPDATE)
    return GpuError(f"{doing} failed {said}.", "This is a fault of the program or of the driver; please report it.")


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
