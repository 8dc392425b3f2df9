"""Real compilation: every target, headers, names, logs, and what is said when it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hart_edge.runtime import nvrtc
from hart_edge.runtime.errors import KernelError, MissingPackageError
from hart_edge.runtime.nvrtc import ARCHITECTURES, Compiler, Unit, toolkit_headers, unit

COMMON = """#pragma once
#include <cuda_fp16.h>
namespace hart { __device__ inline float half_of(float x) { return x / 2; } }
"""
SOURCE = """
#include "middle.cuh"
#if __CUDA_ARCH__ >= 890
#include <cuda_fp8.h>
#endif
namespace hart {
template <typename T, bool twice>
__global__ void halve(T* out, const T* in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = T(half_of(float(in[i])) * (twice ? 2 : 1));
}
}
"""
SOURCES = {"halve.cuh": SOURCE, "middle.cuh": '#pragma once\n  #  include "common.cuh"\n', "common.cuh": COMMON, "other.cuh": "int other;"}
EXPRESSIONS = ("hart::halve<__half, true>", "hart::halve<float, false>")
TARGETS = (75, 80, 86, 89, 90, 120)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_for_every_target(compiler: Compiler, headers: Path, target: int) -> None:
    compiled = compiler.compile(unit("halve.cuh", SOURCES, EXPRESSIONS), target, headers)
    assert compiled.cubin[:4] == b"\x7fELF"
    for expression, part in zip(EXPRESSIONS, ("6__halfLb1", "fLb0"), strict=True):
        assert part in compiled.names[expression]
        assert compiled.names[expression].encode() in compiled.cubin
    assert compiled.log.count(f"for '{ARCHITECTURES.get(target, f'sm_{target}')}'") == len(EXPRESSIONS)


def test_a_unit_holds_what_is_included_directly_or_not_and_nothing_else() -> None:
    assert set(unit("halve.cuh", SOURCES, EXPRESSIONS).headers) == {"middle.cuh", "common.cuh"}
    circular = {"a.cuh": '#include "b.cuh"\n', "b.cuh": '#include "a.cuh"\n#include "missing.cuh"\n'}
    assert set(unit("a.cuh", circular, ()).headers) == {"a.cuh", "b.cuh"}


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(KernelError, match=r"no kernel source 'absent\.cuh'; expected one of common\.cuh, halve\.cuh"):
        unit("absent.cuh", SOURCES, ())


def test_a_syntax_error_names_source_target_and_line(compiler: Compiler, headers: Path) -> None:
    broken = Unit("broken.cuh", "\n\n__global__ void k( {}\n")
    with pytest.raises(
        KernelError, match=r"(?s)broken\.cuh does not compile for SM90a with NVRTC \d+\.\d+: NVRTC_ERROR_COMPILATION.*broken\.cuh\(3\)"
    ):
        compiler.compile(broken, 90, headers)


def test_an_expression_that_is_no_kernel_is_named(compiler: Compiler, headers: Path) -> None:
    with pytest.raises(KernelError, match="hart::absent<float>"):
        compiler.compile(unit("halve.cuh", SOURCES, ("hart::absent<float>",)), 80, headers)


def test_a_target_that_the_compiler_does_not_know(compiler: Compiler, headers: Path) -> None:
    with pytest.raises(KernelError, match=r"does not compile for SM35.*NVRTC_ERROR_INVALID_OPTION"):
        compiler.compile(unit("halve.cuh", SOURCES, EXPRESSIONS), 35, headers)


def pathfinder_finds(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    pytest.importorskip("cuda.pathfinder")
    found = {"cudart": str(folder)} if folder else {}
    monkeypatch.setattr("cuda.pathfinder.find_nvidia_header_directory", found.get)


def test_an_older_nvrtc_takes_the_headers_of_the_toolkit(
    compiler: Compiler, headers: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before 13.3 it has no headers of its own; a folder that has them is given to it."""
    compiler.compile(unit("halve.cuh", SOURCES, EXPRESSIONS), 80, headers)  # unpacks them
    monkeypatch.setattr(compiler, "version", (13, 0))
    monkeypatch.setattr(compiler, "_path", tmp_path / "lib" / "libnvrtc.so.13")
    pathfinder_finds(monkeypatch, headers)
    assert compiler.compile(unit("halve.cuh", SOURCES, EXPRESSIONS), 80, tmp_path / "unused").cubin
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("library", "folder"),
    [
        ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/include"),
        ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cuda_runtime/include"),
        ("cuda-13.0/lib64/libnvrtc.so.13", "cuda-13.0/include"),
        ("lib/x86_64-linux-gnu/libnvrtc.so.13", "pathfinder"),
        ("lib/x86_64-linux-gnu/libnvrtc.so.13", "installed"),
    ],
)
def test_headers_are_found_where_wheels_and_toolkits_have_them(
    library: str, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pathfinder_finds(monkeypatch, tmp_path / "pathfinder")
    monkeypatch.setattr(nvrtc, "TOOLKIT_HEADERS", tmp_path / "installed")
    with pytest.raises(MissingPackageError, match="pip install nvidia-cuda-runtime"):
        toolkit_headers(tmp_path / library)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "cuda_fp16.h").touch()
    assert toolkit_headers(tmp_path / library) == tmp_path / folder


def test_headers_beside_the_compiler_come_before_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pathfinder_finds(monkeypatch, tmp_path / "other")
    for folder in ("other", "nvidia/cu13/include"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cuda_fp16.h").touch()
    assert toolkit_headers(tmp_path / "nvidia" / "cu13" / "lib" / "libnvrtc.so.13") == tmp_path / "nvidia" / "cu13" / "include"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pathfinder = pytest.importorskip("cuda.pathfinder")

    def nothing(name: str) -> None:
        raise pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", nothing)
    with pytest.raises(MissingPackageError, match="pip install nvidia-cuda-nvrtc"):
        Compiler()
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(MissingPackageError, match="pip install cuda-pathfinder"):
        Compiler()


def test_programs_are_destroyed_whether_they_compile_or_not(compiler: Compiler, headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    do = compiler._do
    monkeypatch.setattr(compiler, "_do", lambda function, *arguments: (calls.append(function), do(function, *arguments))[1])
    compiler.compile(unit("halve.cuh", SOURCES, EXPRESSIONS), 75, headers)
    with pytest.raises(KernelError):
        compiler.compile(Unit("broken.cuh", "?"), 75, headers)
    assert calls.count("nvrtcCreateProgram") == calls.count("nvrtcDestroyProgram") == 2
