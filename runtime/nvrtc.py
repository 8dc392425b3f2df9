"""CUDA C++ to machine code through NVRTC: no GPU, no toolkit and neither CUDA host needed.

NVRTC is bound here through ctypes (nine functions), so that it serves PyCUDA too, whose own compiler needs nvcc.
cuda-pathfinder finds the library in the wheel `nvidia-cuda-nvrtc`, in conda or in an installed toolkit. From 13.3 on the
library contains the headers as well (cuda_fp16.h, cuda_fp8.h, mma.h, CCCL); before, the wheel `nvidia-cuda-runtime` or
the installed toolkit has them. Knows nothing of caching.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import KernelError, MissingPackageError

BUNDLED_HEADERS = (13, 3)
"""First NVRTC with the option --use-bundled-headers."""

OPTIONS = ("--std=c++17", "-Xptxas=-v")
"""`-v`: registers and spills of every kernel, in the log."""

ARCHITECTURES = {90: "sm_90a"}
"""Where machine code is for one architecture alone, with what only that one has: Hopper's products of a warpgroup."""

TOOLKIT_HEADERS = Path("/usr/local/cuda/include")
"""Where the toolkit's installer for Linux puts its headers."""

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Unit:
    """What is compiled together.

    Attributes:
        name: file name of the source, for messages.
        text: the source.
        headers: text by name of every file that it includes with quotes, directly or not.
        expressions: names of the kernels as C++ writes them, template arguments included.
    """

    name: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    expressions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """Machine code for one architecture, the lowered name of every expression, and the compiler's log."""

    cubin: bytes
    names: Mapping[str, str]
    log: str


def unit(name: str, sources: Mapping[str, str], expressions: tuple[str, ...]) -> Unit:
    """The unit of one source and of what it includes from `sources`; KernelError for a source that is not there."""
    if name not in sources:
        raise KernelError(f"there is no kernel source {name!r}; expected one of {', '.join(sorted(sources))}.")
    headers: dict[str, str] = {}
    waiting = _INCLUDE.findall(sources[name])
    while waiting:
        header = waiting.pop()
        if header in sources and header not in headers:
            headers[header] = sources[header]
            waiting += _INCLUDE.findall(sources[header])
    return Unit(name, sources[name], headers, expressions)


class Compiler:
    """NVRTC. MissingPackageError names what to install when it is not found.

    Attributes:
        version: of NVRTC, (major, minor).
    """

    def __init__(self) -> None:
        self._path = _find()
        self._library = ctypes.CDLL(str(self._path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._do("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def compile(self, source: Unit, capability: int, folder: Path) -> Compiled:
        """Compile for SM`capability`.

        Args:
            folder: where NVRTC may unpack its headers (26 MB, 0.2 s, only the first time).

        Raises KernelError with the compiler's log.
        """
        with self._program(source) as program:
            for expression in source.expressions:
                self._do("nvrtcAddNameExpression", program, expression.encode())
            log = self._compile(program, source, ARCHITECTURES.get(capability, f"sm_{capability}"), folder)
            return Compiled(self._text("nvrtcGetCUBIN", program), self._names(program, source.expressions), log)

    def ptx(self, source: Unit, capability: int, folder: Path) -> bytes:
        """PTX for SM`capability` and newer, of a source whose kernels have C names; arguments and errors as of `compile`."""
        with self._program(source) as program:
            self._compile(program, source, f"compute_{capability}", folder)
            return self._text("nvrtcGetPTX", program).rstrip(b"\0")

    def _compile(self, program: ctypes.c_void_p, source: Unit, architecture: str, folder: Path) -> str:
        """The compiler's log."""
        options = [f"--gpu-architecture={architecture}", *OPTIONS, *self._header_options(folder)]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self._library.nvrtcCompileProgram(program, len(options), array)
        log = self._text("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
        if status != 0:
            raise KernelError(
                f"{source.name} does not compile for {architecture.replace('sm_', 'SM')} with NVRTC {self}: {self._error(status)}\n{log}"
            )
        return log

    def __str__(self) -> str:
        return "{}.{}".format(*self.version)

    @contextmanager
    def _program(self, source: Unit) -> Iterator[ctypes.c_void_p]:
        count = len(source.headers)
        names = (ctypes.c_char_p * count)(*(name.encode() for name in source.headers))
        texts = (ctypes.c_char_p * count)(*(text.encode() for text in source.headers.values()))
        program = ctypes.c_void_p()
        self._do("nvrtcCreateProgram", ctypes.byref(program), source.text.encode(), source.name.encode(), count, texts, names)
        try:
            yield program
        finally:
            self._do("nvrtcDestroyProgram", ctypes.byref(program))

    def _header_options(self, folder: Path) -> list[str]:
        if self.version >= BUNDLED_HEADERS:
            return [f"--use-bundled-headers={folder}"]
        return [f"-I{toolkit_headers(self._path)}"]

    def _names(self, program: ctypes.c_void_p, expressions: tuple[str, ...]) -> dict[str, str]:
        lowered, names = ctypes.c_char_p(), {}
        for expression in expressions:
            self._do("nvrtcGetLoweredName", program, expression.encode(), ctypes.byref(lowered))
            names[expression] = (lowered.value or b"").decode()
        return names

    def _text(self, function: str, program: ctypes.c_void_p) -> bytes:
        """What `function` writes into a buffer of the size that its sibling names."""
        size = ctypes.c_size_t()
        self._do(f"{function}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._do(function, program, buffer)
        return buffer.raw

    def _do(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise KernelError(f"NVRTC failed: {function}: {self._error(status)}.", "This is a fault of the program; please report it.")

    def _error(self, status: int) -> str:
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        text: bytes = self._library.nvrtcGetErrorString(status)
        return text.decode()


def toolkit_headers(library: Path) -> Path:
    """The folder with cuda_fp16.h: beside NVRTC's own folder, so that both are of one version, else wherever there is one.

    Args:
        library: the file of NVRTC.
    """
    from cuda.pathfinder import find_nvidia_header_directory

    root = library.resolve().parent.parent  # nvidia/cu13 or nvidia/cuda_nvrtc of site-packages, or the toolkit's
    found: str | None = find_nvidia_header_directory("cudart")
    beside = [root / "include", root.parent / "cuda_runtime" / "include"]
    for folder in (*beside, *([Path(found)] if found else []), TOOLKIT_HEADERS):
        if (folder / "cuda_fp16.h").is_file():
            return folder
    raise _missing("nvidia-cuda-runtime")


def _find() -> Path:
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError as error:
        raise _missing("cuda-pathfinder") from error
    try:
        return Path(load_nvidia_dynamic_lib("nvrtc").abs_path)
    except DynamicLibNotFoundError as error:
        raise _missing("nvidia-cuda-nvrtc") from error


def _missing(package: str) -> MissingPackageError:
    return MissingPackageError(f"compiling kernels needs {package}, which was not found.", f"Run: pip install {package}")
