"""The cache of compiled kernels: hits, misses, damage, foreign files, folders that cannot be written, several processes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from hart_edge.runtime import disk_cache, files, kernel_cache
from hart_edge.runtime.errors import HartWarning, KernelError
from hart_edge.runtime.kernel_cache import KernelCache, default_folder
from hart_edge.runtime.nvrtc import Compiled, Compiler, Unit

UNIT = Unit("add.cuh", "source", {"common.cuh": "header"}, ("add<float>", "add<int>"))


class CountingCompiler:
    """In place of NVRTC: counts, and says in its code what it was asked for."""

    def __init__(self, version: tuple[int, int] = (13, 5)) -> None:
        self.version = version
        self.folders: list[Path] = []

    def __str__(self) -> str:
        return "13.5"

    def compile(self, source: Unit, capability: int, folder: Path) -> Compiled:
        self.folders.append(folder)
        if source.text == "broken":
            raise KernelError("broken")
        return Compiled(f"{source.text} {capability}".encode() + b"\n\0code", {e: f"_{e}" for e in source.expressions}, "log\n")


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "kernels", CountingCompiler())  # type: ignore[arg-type]


def compiled(cache: KernelCache) -> int:
    return len(cache.compiler.folders)  # type: ignore[attr-defined]


def entry(cache: KernelCache) -> Path:
    (path,) = cache.folder.glob("*.bin")
    return path


def test_the_second_time_it_is_read_also_by_another_process(cache: KernelCache) -> None:
    first = cache.get(UNIT, 90)
    assert first == cache.get(UNIT, 90) == KernelCache(cache.folder, cache.compiler).get(UNIT, 90)
    assert first.cubin == b"source 90\n\0code"
    assert first.names == {"add<float>": "_add<float>", "add<int>": "_add<int>"}
    assert compiled(cache) == 1
    assert entry(cache).name.startswith("add.cuh-sm90-")


def test_everything_that_decides_the_result_is_in_the_key(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        cache.key(UNIT, 90),
        cache.key(UNIT, 80),
        cache.key(replace(UNIT, name="sub.cuh"), 90),
        cache.key(replace(UNIT, text="source "), 90),
        cache.key(replace(UNIT, headers={"common.cuh": "header "}), 90),
        cache.key(replace(UNIT, headers={"common2.cuh": "header"}), 90),
        cache.key(replace(UNIT, expressions=("add<float>",)), 90),
        KernelCache(cache.folder, CountingCompiler((13, 6))).key(UNIT, 90),  # type: ignore[arg-type]
    ]
    monkeypatch.setattr(kernel_cache, "OPTIONS", ("--std=c++20",))
    keys.append(cache.key(UNIT, 90))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("position", [0, 5, 25, 60, 120, -1])
def test_a_damaged_entry_is_compiled_again_and_replaced(cache: KernelCache, position: int) -> None:
    good = cache.get(UNIT, 90)
    data = bytearray(entry(cache).read_bytes())
    data[position] ^= 1
    entry(cache).write_bytes(data)
    assert cache.get(UNIT, 90) == good
    assert compiled(cache) == 2
    assert cache.get(UNIT, 90) == good
    assert compiled(cache) == 2


@pytest.mark.parametrize("length", [0, 10, 40, 100, -1])
def test_a_truncated_entry_is_compiled_again(cache: KernelCache, length: int) -> None:
    good = cache.get(UNIT, 90)
    entry(cache).write_bytes(entry(cache).read_bytes()[:length])
    assert cache.get(UNIT, 90) == good
    assert compiled(cache) == 2


def test_an_intact_entry_of_something_else_is_not_taken(cache: KernelCache) -> None:
    cache.get(replace(UNIT, text="other"), 90)
    other = entry(cache)
    good = cache.get(UNIT, 90)
    (mine,) = set(cache.folder.glob("*.bin")) - {other}
    mine.write_bytes(other.read_bytes())
    assert cache.get(UNIT, 90) == good


def test_a_folder_in_the_entrys_place_costs_time_only(cache: KernelCache) -> None:
    good = cache.get(UNIT, 90)
    path = entry(cache)
    path.unlink()
    path.mkdir()
    with pytest.warns(HartWarning, match="cannot be kept"):
        assert cache.get(UNIT, 90) == good


def test_a_folder_that_cannot_be_made_costs_time_only_and_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = KernelCache(tmp_path / "file" / "kernels", CountingCompiler())  # type: ignore[arg-type]
    with pytest.warns(HartWarning, match="every start compiles them again") as caught:
        cache.get(UNIT, 90)
        cache.get(UNIT, 80)
    assert len(caught) == 1
    assert compiled(cache) == 2
    assert not any(folder.exists() for folder in cache.compiler.folders)  # type: ignore[attr-defined]


def test_a_full_disk_costs_time_only(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise files.InputError("No space left on device")

    monkeypatch.setattr(disk_cache, "write_bytes", full)
    with pytest.warns(HartWarning, match="No space left"):
        assert cache.get(UNIT, 90).log == "log\n"


def test_what_does_not_compile_is_not_kept(cache: KernelCache) -> None:
    with pytest.raises(KernelError, match="broken"):
        cache.get(replace(UNIT, text="broken"), 90)
    assert list(cache.folder.glob("*.bin")) == []


def test_processes_may_share_a_folder(compiler: Compiler, tmp_path: Path) -> None:
    """Four processes compile the same kernel at once, headers included; all get it, and one entry is left."""
    code = f"""
import sys
from pathlib import Path
from hart_edge.runtime.kernel_cache import KernelCache
from hart_edge.runtime.nvrtc import Unit
unit = Unit("k.cuh", "#include <cuda_fp16.h>\\ntemplate <class T> __global__ void k(T* p) {{ *p = T(1); }}", {{}}, ("k<__half>",))
print(len(KernelCache(Path({str(tmp_path)!r})).get(unit, 80).cubin))
"""
    started = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    sizes = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(sizes) == 1
    assert len(list(tmp_path.glob("*.bin"))) == 1
    assert list(tmp_path.glob(".hart-edge-*")) == []


def test_a_real_entry_survives(compiler: Compiler, tmp_path: Path) -> None:
    unit = Unit("k.cuh", "template <class T> __global__ void k(T* p) { *p = T(1); }", {}, ("k<float>",))
    first = KernelCache(tmp_path, compiler).get(unit, 75)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KernelCache(tmp_path, compiler).get(unit, 75) == first


def test_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("platformdirs")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder().parts[-2:] == ("hart-edge", "kernels")
