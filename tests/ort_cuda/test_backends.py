"""Which backend is taken, what is said when one is passed over, and what its packages must be."""

from __future__ import annotations

import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
from host_device import HostCuda, HostDevice

from hart_edge.runtime import Bundle, BundleError, EngineError, GpuError, HartError, HartWarning, InputError, MissingPackageError, Pipeline
from hart_edge.runtime import backends as backends_module
from hart_edge.runtime import ort_cuda_setup as setup
from hart_edge.runtime import pipeline as pipeline_module
from hart_edge.runtime.backends import BACKENDS, candidates, has_driver, open_backend
from hart_edge.runtime.bundle import bundled_folder
from hart_edge.runtime.cuda import DeviceInfo
from hart_edge.runtime.doctor import gpu
from hart_edge.runtime.doctor.gpu import Gpu, GpuState
from hart_edge.runtime.ort import OrtCpu

GPU_BUILD = ["CUDAExecutionProvider", "CPUExecutionProvider"]
CPU_BUILD = ["CPUExecutionProvider"]


@pytest.fixture
def bundle() -> Bundle:
    return Bundle(bundled_folder(), check_files=False)


def pretend_driver(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(backends_module, "has_driver", lambda: present)


def test_auto_and_cpu_are_always_there() -> None:
    assert BACKENDS[0] == "auto"
    assert BACKENDS[-1] == "cpu"
    assert "ort-cuda" in BACKENDS


WITHOUT_ENGINES = ("cuda", "ort-cuda", "cpu")
"""What `auto` tries for a bundle for which no TensorRT engines were built."""


@pytest.mark.parametrize(("present", "expected"), [(True, WITHOUT_ENGINES), (False, ("cpu",))])
def test_auto_tries_everything_only_where_there_is_a_driver(
    monkeypatch: pytest.MonkeyPatch, present: bool, expected: tuple[str, ...]
) -> None:
    pretend_driver(monkeypatch, present)
    assert candidates("auto") == expected
    assert candidates("ort-cuda") == ("ort-cuda",)
    with pytest.raises(InputError, match="'abacus' is unknown; expected one of auto"):
        candidates("abacus")


@pytest.mark.parametrize(
    ("built", "capability", "expected"),
    [
        (["tensorrt"], 86, ("tensorrt",)),
        (["tensorrt", "tensorrt-rtx"], 86, ("tensorrt-rtx", "tensorrt")),
        (["tensorrt", "tensorrt-rtx"], 80, ("tensorrt", "tensorrt-rtx")),
        (["tensorrt", "tensorrt-rtx"], None, ("tensorrt-rtx", "tensorrt")),
    ],
)
def test_auto_takes_tensorrt_where_engines_were_built_the_cards_own_first(
    built: list[str], capability: int | None, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_driver(monkeypatch, True)
    gpus = () if capability is None else (Gpu(0, "a card", capability, 1 << 33, 1 << 32),)
    monkeypatch.setattr(gpu, "look_at_gpus", lambda: GpuState(13000, gpus, None))
    (tmp_path / "manifest.json").write_text("{}")
    for name in built:
        (tmp_path / name).mkdir()
        (tmp_path / name / "engines.json").write_text("{}")
    assert candidates("auto", bundle=tmp_path) == (*expected, *WITHOUT_ENGINES)
    assert candidates("auto", low_vram=True, bundle=tmp_path) == ("cuda", "cpu")
    assert candidates("tensorrt", bundle=tmp_path) == ("tensorrt",)


def test_driver_is_looked_for_by_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends_module, "LIBRARY", "libno-such-driver.so.1")
    assert not has_driver()
    monkeypatch.setattr(backends_module.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert has_driver()


def test_without_a_driver_auto_takes_the_cpu_and_says_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_driver(monkeypatch, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Pipeline.open(bundle, backend="auto") as pipe:
            assert pipe.backend == "cpu"


@pytest.mark.parametrize("error", [MissingPackageError("no provider.", "Install it."), GpuError("too old.", "Buy."), EngineError("bad.")])
def test_every_step_down_is_told_once_with_its_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: HartError) -> None:
    def refuse(name: str, threads: int, low_vram: bool) -> OrtCpu:
        if name == "cpu":
            return OrtCpu(threads)
        raise error

    pretend_driver(monkeypatch, True)
    monkeypatch.setattr(pipeline_module, "open_backend", refuse)
    with pytest.warns(HartWarning) as caught, Pipeline.open(bundle, backend="auto") as pipe:
        assert pipe.backend == "cpu"
    assert [str(w.message) for w in caught] == [f"backend {name} was passed over: {error}" for name in WITHOUT_ENGINES[:-1]]
    with pytest.raises(type(error)):
        Pipeline.open(bundle, backend="ort-cuda")


def test_a_backend_whose_engines_do_not_load_is_closed_and_passed_over(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[HostCuda] = []

    class Broken(HostCuda):
        def open_engine(self, path: Path, name: str) -> None:
            if name == "transformer":
                raise GpuError("the card went away.")
            return super().open_engine(path, name)

    def choose(name: str, threads: int, low_vram: bool) -> OrtCpu | HostCuda:
        if name == "cpu":
            return OrtCpu(threads)
        opened.append(Broken(HostDevice()))
        return opened[-1]

    pretend_driver(monkeypatch, True)
    monkeypatch.setattr(pipeline_module, "open_backend", choose)
    with pytest.warns(HartWarning, match="the card went away"), Pipeline.open(bundle, backend="auto") as pipe:
        assert pipe.backend == "cpu"
        assert pipe.generate("a tree", seed=1).size == (pipe.spec.image_size,) * 2
    assert [backend.closed for backend in opened] == [True] * len(WITHOUT_ENGINES[:-1])


def test_damaged_bundle_is_an_error_of_the_last_backend_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_driver(monkeypatch, False)
    with pytest.raises(BundleError):
        Pipeline.open(Bundle(Path("/nowhere")), backend="auto")


def providers(monkeypatch: pytest.MonkeyPatch, names: list[str], gpu_package: bool) -> None:
    def version(package: str) -> str:
        if package == "onnxruntime-gpu" and not gpu_package:
            raise metadata.PackageNotFoundError(package)
        return "1.31.1"

    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(metadata, "version", version)


def test_cpu_build_says_how_to_get_the_gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, CPU_BUILD, gpu_package=False)
    with pytest.raises(MissingPackageError, match=r"no CUDA provider.*pip install 'hart-edge\[gpu\]' && pip install --force-reinstall"):
        open_backend("ort-cuda", 0)


def test_cpu_build_over_the_gpu_build_says_how_to_undo_that(monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, CPU_BUILD, gpu_package=True)
    with pytest.raises(MissingPackageError, match=r"installed over onnxruntime-gpu.*--force-reinstall --no-deps onnxruntime-gpu"):
        setup.check_provider()


def test_gpu_build_passes_whatever_its_package_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu_package in (True, False):
        providers(monkeypatch, GPU_BUILD, gpu_package=gpu_package)
        assert setup.check_provider() is None  # raises where it does not pass


def info(version: int) -> DeviceInfo:
    return DeviceInfo(0, "Test GPU", 90, 1 << 30, 1 << 16, version)


@pytest.mark.parametrize(("built", "driver", "fits"), [("13.0", 13000, True), ("13.2", 13000, True), ("13.0", 12080, False), ("", 1, True)])
def test_driver_must_know_the_cuda_that_onnxruntime_was_built_for(
    monkeypatch: pytest.MonkeyPatch, built: str, driver: int, fits: bool
) -> None:
    monkeypatch.setattr(ort, "cuda_version", built, raising=False)
    if fits:
        setup.check_driver(info(driver))
        return
    with pytest.raises(GpuError, match=r"supports CUDA 12; this onnxruntime-gpu needs CUDA 13.*current NVIDIA driver"):
        setup.check_driver(info(driver))


def loader(monkeypatch: pytest.MonkeyPatch, absent: str = "") -> list[str]:
    """Doubles of what loads libraries; returns what was loaded."""
    loaded: list[str] = []

    def load(name: str) -> None:
        if name == absent:
            raise RuntimeError(f'Failure finding "lib{name}.so"\nmany more lines')
        loaded.append(name)

    def cdll(path: str) -> None:
        if absent == "cudnn":
            raise OSError(f"{path}: cannot open shared object file")
        loaded.append(path)

    monkeypatch.setattr(setup.importlib, "import_module", lambda name: SimpleNamespace(load_nvidia_dynamic_lib=load))
    monkeypatch.setattr(setup.ctypes, "CDLL", cdll)
    return loaded


@pytest.mark.parametrize("absent", ["cublas", "cudnn"])
def test_missing_library_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    loader(monkeypatch, absent)
    with pytest.raises(MissingPackageError, match=rf"library {absent} cannot be loaded.*onnxruntime-gpu\[cuda,cudnn\]") as caught:
        setup.load_libraries()
    assert "many more" not in str(caught.value)


def test_cudnn_is_taken_from_its_package_or_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = loader(monkeypatch)
    spec: Any = None
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: spec)
    setup.load_libraries()
    assert loaded == [*setup.LIBRARIES, Path(setup.CUDNN).name]
    library = tmp_path / setup.CUDNN
    library.parent.mkdir()
    library.touch()
    spec = SimpleNamespace(submodule_search_locations=["/nowhere", str(tmp_path)])
    setup.load_libraries()
    assert loaded[-1] == str(library)


def test_missing_finder_of_libraries_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(setup.importlib, "import_module", absent)
    with pytest.raises(MissingPackageError, match=r"cuda-pathfinder.*hart-edge"):
        setup.load_libraries()
