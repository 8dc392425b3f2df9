"""Both hosts over recording doubles, and what needs the compiler."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles import Bindings, Double, Library, PyCuda

from hart_edge.runtime.cuda import Device
from hart_edge.runtime.drivers.cuda_python import CudaPython
from hart_edge.runtime.drivers.libcuda import LibCuda
from hart_edge.runtime.drivers.pycuda import PyCuda as PyCudaHost
from hart_edge.runtime.nvrtc import Compiler


@pytest.fixture(params=["cuda-python", "pycuda"])
def double(request: pytest.FixtureRequest) -> Double:
    if request.param == "cuda-python":
        if not importlib.util.find_spec("cuda") or not importlib.util.find_spec("cuda.bindings"):
            pytest.skip("needs the package cuda-bindings, whose signatures the double takes")
        bindings = Bindings()
        return Double(CudaPython(bindings), bindings)
    module = PyCuda()
    return Double(PyCudaHost(module, LibCuda(Library(module))), module)


@pytest.fixture
def device(double: Double) -> Iterator[Device]:
    with Device(host=double.driver) as device:
        yield device


@pytest.fixture(scope="session")
def compiler() -> Compiler:
    pytest.importorskip("cuda.pathfinder", reason="needs cuda-pathfinder and nvidia-cuda-nvrtc: pip install 'hart-edge[cuda]'")
    return Compiler()


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where NVRTC unpacks its headers, once for all tests."""
    return tmp_path_factory.mktemp("headers")
