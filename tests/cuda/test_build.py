"""Compiling ahead of time: all kernels for all targets, the table, and a failure that names everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hart_edge.plugins.build import TARGETS, build, parse_targets, table, usage
from hart_edge.plugins.kernel import Kernel
from hart_edge.runtime.errors import InputError, KernelError
from hart_edge.runtime.kernel_cache import KernelCache
from hart_edge.runtime.nvrtc import Compiler

SOURCES = {
    "add.cuh": """template <class T> __global__ void add(T* p) { *p += T(1); }
#if __CUDA_ARCH__ >= 890
__global__ void fp8(char* p) { *p = 0; }
#endif""",
    "bad.cuh": 'template <int N> __global__ void bad(int* p) { static_assert(N < 2, "too large"); *p = N; }',
}
ADD = (Kernel("add.cuh", "add<float>"), Kernel("add.cuh", "add<int>"), Kernel("add.cuh", "fp8", 89))


@pytest.fixture
def cache(compiler: Compiler, tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path, compiler)


def test_builds_for_targets_and_skips_what_they_cannot_run(cache: KernelCache) -> None:
    results = build(ADD, SOURCES, (75, 90), cache)
    assert {key: set(compiled.names) for key, compiled in results.items()} == {
        ("add.cuh", 75): {"add<float>", "add<int>"},
        ("add.cuh", 90): {"add<float>", "add<int>", "fp8"},
    }


def test_a_source_with_nothing_for_a_target_is_left_out(cache: KernelCache) -> None:
    assert build((Kernel("add.cuh", "fp8", 89),), SOURCES, (75,), cache) == {}


def test_a_kernel_of_one_architecture_is_built_for_it_alone(cache: KernelCache) -> None:
    kernels = (*ADD, Kernel("add.cuh", "add<double>", 90, 90))
    built = build(kernels, SOURCES, (80, 90, 120), cache)
    assert [target for (_, target), compiled in built.items() if "add<double>" in compiled.names] == [90]


def test_a_failure_names_source_kernel_target_and_log_and_the_others_are_built(cache: KernelCache) -> None:
    kernels = (*ADD, Kernel("bad.cuh", "bad<1>"), Kernel("bad.cuh", "bad<2>"))
    with pytest.raises(KernelError) as caught:
        build(kernels, SOURCES, (80,), cache)
    message = str(caught.value)
    for part in ("bad<2>: bad.cuh does not compile for SM80", "too large"):
        assert part in message
    assert "bad<1>:" not in message
    assert len(list(cache.folder.glob("add.cuh-sm80-*.bin"))) == 1


def test_registers_are_read_from_the_log(cache: KernelCache) -> None:
    (compiled,) = build(ADD, SOURCES, (90,), cache).values()
    used = usage(compiled)
    assert set(used) == {"add<float>", "add<int>", "fp8"}
    assert all(2 <= registers <= 255 and spilled == 0 for registers, spilled in used.values())


def test_the_table_has_sizes_registers_and_what_is_skipped(cache: KernelCache) -> None:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table(ADD, build(ADD, SOURCES, (75, 90), cache)))
    lines = {line.split("│")[1].strip(): line.split("│")[2:4] for line in console.export_text().splitlines() if line.startswith("│")}
    assert [cell.strip()[-3:] for cell in lines["add.cuh"]] == ["KiB", "KiB"]
    assert all(1 < int(cell) < 256 for cell in lines["add<float>"])
    assert lines["fp8"][0].strip() == "needs SM89"
    assert int(lines["fp8"][1]) > 1


def test_targets_are_checked() -> None:
    assert parse_targets("sm75,sm120") == (75, 120)
    for wrong in ("", "75", "sm75,", "sm75 sm80", "sm9000"):
        with pytest.raises(InputError, match="not a list of architectures"):
            parse_targets(wrong)


@pytest.mark.slow
def test_every_kernel_of_the_plugins_compiles_for_every_target(compiler: Compiler, tmp_path: Path) -> None:
    arguments = ["-m", "hart_edge.plugins.build", "--cache", str(tmp_path)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"sm{target}" in done.stdout for target in TARGETS)
    assert "skipped for sm75" in done.stdout


def test_the_command_refuses_a_wrong_target(compiler: Compiler) -> None:
    done = subprocess.run([sys.executable, "-m", "hart_edge.plugins.build", "--target", "90"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not a list of architectures" in done.stderr
