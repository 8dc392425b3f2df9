"""The hosts themselves: which one is taken, what is said when one is missing, and that real functions take our arguments."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from doubles import DESCRIPTIONS, Library
from doubles import PyCuda as PyCudaDouble

from hart_edge.runtime.drivers import choose, faults, open_driver
from hart_edge.runtime.drivers.cuda_python import CudaPython
from hart_edge.runtime.drivers.faults import CudaStatus, explain
from hart_edge.runtime.drivers.libcuda import LIBRARY, LibCuda
from hart_edge.runtime.drivers.protocol import Driver
from hart_edge.runtime.drivers.pycuda import PyCuda
from hart_edge.runtime.errors import GpuError, InputError, MissingPackageError


def no_driver() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return True
    return False


def absent() -> Any:
    raise ImportError("not here")


@pytest.mark.parametrize("host", [CudaPython, PyCuda])
def test_a_host_has_exactly_the_protocols_methods_and_parameters(host: type) -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {name: list(inspect.signature(f).parameters) for name, f in inspect.getmembers(kind, inspect.isfunction) if name[0] != "_"}

    assert methods(host) == methods(Driver)


def test_auto_takes_the_first_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choose.HOSTS, "cuda-python", (lambda: "first", "cuda"))
    monkeypatch.setitem(choose.HOSTS, "pycuda", (lambda: "second", "pycuda"))
    assert (open_driver(), open_driver("pycuda")) == ("first", "second")
    monkeypatch.setitem(choose.HOSTS, "cuda-python", (absent, "cuda"))
    assert open_driver() == "second"


def test_a_missing_host_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choose.HOSTS, "cuda-python", (absent, "cuda"))
    monkeypatch.setitem(choose.HOSTS, "pycuda", (absent, "pycuda"))
    with pytest.raises(MissingPackageError, match=r"pip install 'hart-edge\[pycuda\]'"):
        open_driver("pycuda")
    with pytest.raises(MissingPackageError, match=r"cuda-python or pycuda.*pip install 'hart-edge\[cuda\]'"):
        open_driver()
    with pytest.raises(InputError, match="'cupy' is unknown; expected one of auto, cuda-python, pycuda"):
        open_driver("cupy")


@pytest.mark.skipif(not no_driver(), reason="needs a machine without an NVIDIA driver")
@pytest.mark.parametrize("host", ["cuda-python", "pycuda"])
def test_without_a_driver_the_message_says_so(host: str) -> None:
    pytest.importorskip({"cuda-python": "cuda.bindings.driver", "pycuda": "pycuda"}[host])
    with pytest.raises(GpuError, match="no NVIDIA driver on this machine"):
        open_driver(host)


@pytest.mark.skipif(not no_driver(), reason="needs a machine without an NVIDIA driver: with one, the invented handles would be used")
def test_the_real_bindings_accept_the_types_of_every_argument() -> None:
    """They convert their arguments before they look for the driver: a wrong type is a TypeError, a right one gets to the latter."""
    api = pytest.importorskip("cuda.bindings.driver")
    host = object.__new__(CudaPython)
    host._api = api
    stream, event, graph = api.CUstream(1), api.CUevent(1), api.CUgraphExec(1)
    module, function, context, capture = api.CUmodule(1), api.CUfunction(1), api.CUcontext(1), api.CUgraph(1)
    array = np.zeros(4, np.uint8)
    calls: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("version", "count", "pop", "synchronize", "memory", "create_stream", "create_event"), ()),
        **dict.fromkeys(("device_name", "total_memory", "capability", "shared_limit", "retain"), (0,)),
        **dict.fromkeys(("allocate", "pin"), (16,)),
        **dict.fromkeys(("destroy_stream", "synchronize_stream", "begin_capture", "end_capture"), (stream,)),
        **dict.fromkeys(("destroy_event", "synchronize_event"), (event,)),
        **dict.fromkeys(("destroy_capture", "instantiate"), (capture,)),
        "release": (0, context),
        "push": (context,),
        "free": (api.CUdeviceptr(1),),
        "unpin": (array,),
        "upload": (1, array, stream),
        "download": (array, 1, stream),
        "copy": (1, 2, 3, stream),
        "fill": (1, 2, 3, stream),
        "wait": (stream, event),
        "record": (event, stream),
        "elapsed": (event, event),
        "load": (b"cubin",),
        "unload": (module,),
        "function": (module, "name"),
        "registers": (function,),
        "allow_shared": (function, 50_000),
        "launch": (function, (1, 1, 1), (1, 1, 1), 0, stream, b"1234"),
        "launch_graph": (graph, stream),
        "destroy_graph": (graph,),
    }
    public = {name for name, _ in inspect.getmembers(CudaPython, inspect.isfunction) if name[0] != "_"}
    assert set(calls) | {"stream_address", "stream_at"} == public
    for name, arguments in calls.items():
        with pytest.raises(RuntimeError, match="NVIDIA driver library"):
            getattr(host, name)(*arguments)
    assert host.stream_address(stream) == host.stream_address(host.stream_at(1)) == 1


def test_the_statuses_that_are_told_apart_exist() -> None:
    api = pytest.importorskip("cuda.bindings.driver")
    told = faults.LOST | faults.DRIVER_PROBLEMS | faults.WRONG_BINARY | {"CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_NO_DEVICE"}
    assert [name for name in told - {faults.OLD_DRIVER} if not hasattr(api.CUresult, name)] == []


def test_a_function_that_the_driver_lacks_means_an_old_driver() -> None:
    class Old:
        @staticmethod
        def cuInit(flags: int) -> tuple[int]:
            return (0,)

        @staticmethod
        def cuMemGetInfo() -> tuple[int]:
            raise RuntimeError('Function "cuMemGetInfo" not found')

    host = CudaPython(Old())
    with pytest.raises(CudaStatus) as caught:
        host.memory()
    assert caught.value.name == faults.OLD_DRIVER
    assert "Install a current NVIDIA driver" in explain(caught.value, "asking").hint


def test_an_unknown_status_of_pycuda_keeps_its_words() -> None:
    error = explain(CudaStatus("cuMemAlloc", faults.UNKNOWN, "strange"), "allocating")
    assert "allocating failed (cuMemAlloc: unknown status: strange)" in str(error)


def test_statuses_described_alike_have_the_name_of_the_lowest() -> None:
    names = LibCuda(Library(PyCudaDouble())).names()
    assert names["device kernel image is invalid"] == "CUDA_ERROR_INVALID_IMAGE"
    assert set(names) == {description for _, description in DESCRIPTIONS.values()}


def test_pycudas_library_is_linked_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libcuda, importing its extension fails with an ImportError that is not about a missing package."""

    def fail(name: str) -> Any:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(GpuError, match=r"no NVIDIA driver .*libcuda\.so\.1"):
        open_driver("pycuda")


def test_the_runtime_imports_no_cuda_package() -> None:
    code = (
        "import sys, hart_edge.runtime, hart_edge.runtime.kernels; "
        "print(sorted({'cuda', 'pycuda', 'platformdirs', 'torch'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
