"""The backends over doubles. The doubles lie beside those of the ONNX Runtime backend, whose device they build on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "ort_cuda"))

from made_engines import graph_of, make_engines
from tensorrt_double import CLASSIC, HostGpu, Opener, TrtDouble, rtx_table  # after the path is known

from hart_edge.runtime import (
    Bundle,
    KernelError,
    device_sampling,
)
from hart_edge.runtime.bundle import bundled_folder
from hart_edge.runtime.trt import backend as backend_module
from hart_edge.runtime.trt import log as log_module
from hart_edge.runtime.trt.backend import TrtBackend
from hart_edge.runtime.trt.packages import PACKAGES, TensorRtPackage
from hart_edge.runtime.trt.sidecar import engine_folders


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle(bundled_folder(), check_files=False)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder: engines of the bundled model and runtime caches go there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(bundle: Bundle, cache_home: Path) -> Path:
    """Engines of TensorRT-RTX for the bundled model, where they are looked for."""
    return make_engines(engine_folders(bundle.root, "tensorrt-rtx")[-1], bundle)


@pytest.fixture
def trt(bundle: Bundle, folder: Path) -> TrtDouble:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, whose signatures the double takes: pip install 'hart-edge[rtx]'")
    return TrtDouble(rtx_table(), lambda content: graph_of(bundle, content))


@pytest.fixture
def classic(bundle: Bundle, cache_home: Path) -> TrtDouble:
    """Classic TensorRT, and engines that it built on an A100."""
    make_engines(engine_folders(bundle.root, "tensorrt")[-1], bundle, "tensorrt")
    return TrtDouble(CLASSIC, lambda content: graph_of(bundle, content))


@pytest.fixture
def open_trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Opens a backend over a double of the module and a device of the host's memory; closed after the test."""
    opened: list[TrtBackend] = []

    def absent(*arguments: object) -> None:
        raise KernelError("no compiler.")

    def open_backend(trt: TrtDouble, name: str = "tensorrt-rtx", gpu: HostGpu | None = None) -> TrtBackend:
        trt.gpu = gpu or HostGpu(86 if name == "tensorrt-rtx" else 80)
        package = PACKAGES[name]
        monkeypatch.setattr(TensorRtPackage, "require", lambda self: None)
        monkeypatch.setattr(TensorRtPackage, "load", lambda self: trt)
        monkeypatch.setattr(backend_module, "log_of", log_module.Log)
        monkeypatch.setattr(device_sampling, "KernelLibrary", absent)
        opened.append(TrtBackend(package.name, trt.gpu))
        return opened[-1]

    yield open_backend
    for backend in opened:
        backend.close()
