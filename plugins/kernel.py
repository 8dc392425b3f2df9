"""What a kernel and a launch are, as data: no driver, no compiler, no device is known here.

The operators' files build launches; the host code compiles the kernels and passes the arguments on.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np

C_TYPES = {
    "float32": "float",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "int8": "signed char",
    "float8_e4m3": "__nv_fp8_e4m3",
}
"""Element types of the kernels by the name that `Buffer.dtype` has."""

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3": 1, "uint8": 1, "int64": 8, "uint64": 8}
FLOATS = ("float32", "float16", "bfloat16")
FP8 = "float8_e4m3"
SHARED_LIMIT = 48 * 1024
"""Bytes of shared memory that every GPU gives a block without being asked for more."""


@dataclass(frozen=True)
class Kernel:
    """One instantiation.

    Attributes:
        source: file name in plugins/.
        expression: NVRTC name expression, such as `hart::rms_norm<__half, __half, 8>`.
        minimum, maximum: least and greatest compute capability, 10·major + minor.
    """

    source: str
    expression: str
    minimum: int = 75
    maximum: int = 999


def minimum_of(dtype: str) -> int:
    """Least compute capability of kernels that write the type: conversions to FP8 came with SM89."""
    return 89 if dtype == FP8 else 75


@dataclass(frozen=True)
class Pointer:
    """A device address; 0 is the null pointer, which switches an option of a kernel off."""

    value: int


Argument = Pointer | np.int32 | np.int64 | np.float32 | np.uint64


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        shared: bytes of dynamic shared memory.
        arguments: in the kernel's order.
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Buffer:
    """A contiguous array in device memory: address, shape, and a dtype out of `ITEM_BYTES`."""

    address: int
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def sources() -> dict[str, str]:
    """The text of every .cuh file by name."""
    found = [file for file in files(__package__).iterdir() if file.name.endswith(".cuh")]
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(found, key=lambda file: file.name)}
