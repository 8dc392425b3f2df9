"""A GPU that is lost, and libraries that fail: what is said, and that the process goes on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_scales import emulated_gpu
from pipelines import opened
from random_bundle import small_bundle

from hart_edge.plugins import Launch
from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.errors import EngineError, GpuError, GpuLostError, GpuMemoryError, HartError, InputError
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.library_errors import OPENING, checked, closed
from hart_edge.runtime.pipeline import Pipeline

LOST = "This process can go on without it: close the pipeline and use the CPU. To use the GPU again, restart the process."


def device(state: HartError | None = None) -> Any:
    """One that waits, or answers as it does when it is lost or captures."""

    def synchronize() -> None:
        if state is not None:
            raise state

    return SimpleNamespace(synchronize=synchronize, active=nullcontext)


def failing(text: str, error: type[Exception] = RuntimeError) -> Any:
    def call() -> None:
        raise error(text)

    return call


@pytest.mark.parametrize(
    ("text", "state", "expected", "hint"),
    [
        ("CUBLAS_STATUS_EXECUTION_FAILED", None, EngineError, "ort-cuda"),
        ("CUBLAS_STATUS_EXECUTION_FAILED", GpuLostError("the GPU was lost.", LOST), GpuLostError, "restart the process"),
        ("CUDNN_STATUS_ALLOC_FAILED", None, GpuMemoryError, "--low-vram"),
        ("not permitted", GpuError("a capture is going on."), EngineError, "ort-cuda"),
    ],
)
def test_an_exception_of_a_library_says_what_is_wrong(text: str, state: HartError | None, expected: type, hint: str) -> None:
    with pytest.raises(expected) as caught:
        checked(device(state), "running a product", failing(text))
    assert hint in caught.value.hint


def test_a_library_that_does_not_open_names_the_packages_and_our_errors_pass() -> None:
    with pytest.raises(EngineError, match="opening cuDNN failed: no libcudnn") as caught:
        checked(device(), "opening cuDNN", failing("no libcudnn"), remedy=OPENING)
    assert "hart-edge[fused]" in caught.value.hint
    with pytest.raises(InputError, match=r"^wrong$"):
        checked(device(), "anything", failing("wrong", InputError))


def test_closing_a_library_on_a_lost_gpu_is_no_error() -> None:
    closed(device(GpuLostError("lost.")), "closing cuBLASLt", failing("CUBLAS_STATUS_EXECUTION_FAILED"))
    with pytest.raises(EngineError):
        closed(device(), "closing cuBLASLt", failing("CUBLAS_STATUS_EXECUTION_FAILED"))


class Losing:
    """Lets an emulated GPU answer so many launches, and none after that."""

    def __init__(self, context: FusedContext, launches: int) -> None:
        self.left, self._launch = launches, context.library.launch
        vars(context)["library"] = SimpleNamespace(launch=self.launch)
        vars(context.stream).update(synchronize=self.check)
        vars(context.device).update(synchronize=self.check)

    def launch(self, launch: Launch, stream: Any) -> None:
        self.left -= 1
        self.check()
        self._launch(launch, stream)

    def check(self) -> None:
        if self.left < 0:
            raise GpuLostError("the GPU was lost while launching a kernel (CUDA_ERROR_ILLEGAL_ADDRESS).", LOST)


@pytest.mark.parametrize("launches", [3, 40, 200])
@pytest.mark.parametrize("low_vram", [False, True])
def test_a_gpu_lost_in_the_middle_ends_the_generation_and_closing_is_no_error(tmp_path: Any, launches: int, low_vram: bool) -> None:
    """In the text encoder, in the scale loop, in the decoder; the CPU draws afterwards."""
    bundle, context = small_bundle(tmp_path / "bundle"), emulated_gpu(900 << 20)
    losing = Losing(context, 10**6)
    with opened(bundle, context, low_vram) as pipe:
        pipe.generate("a tree", seed=1)
        losing.left = launches
        with pytest.raises(GpuLostError, match="was lost") as caught:
            pipe.generate("a tree", seed=2)
        assert "use the CPU" in caught.value.hint
        with pytest.raises(GpuLostError):
            pipe.generate("a tree", seed=3)
    assert context.device.use.bytes < 64 << 10  # tensors that the errors' frames hold; weights and workspaces are gone


@pytest.mark.gpu
def test_a_real_gpu_lost_in_the_middle_leaves_the_process_and_the_cpu(gpu_context: FusedContext) -> None:
    """In a process of its own, because its context is beyond repair afterwards."""
    code = """
        import numpy as np
        from hart_edge.runtime.bundle import Bundle, bundled_folder
        from hart_edge.runtime.errors import GpuLostError
        from hart_edge.runtime.kernel_cache import KernelCache
        from hart_edge.runtime.kernels import pack
        from hart_edge.runtime.nvrtc import unit
        from hart_edge.runtime.pipeline import Pipeline

        bundle = Bundle(bundled_folder(), check_files=False)
        with Pipeline.open(bundle, backend="cuda") as pipe:
            steps = pipe.stream("two red circles", seed=1)
            next(steps)
            device, stream = pipe.memory.device, pipe.memory.stream
            source = {"bad.cuh": "__global__ void bad(int* p) { *p = 1; }"}
            compiled = KernelCache().get(unit("bad.cuh", source, ("bad",)), device.info.capability)
            function = device.module(compiled.cubin).function(compiled.names["bad"])
            function.launch(stream, (1, 1, 1), (1, 1, 1), 0, pack((np.uint64(64),)))
            try:
                list(steps)
            except GpuLostError as error:
                print("lost:", error)
            steps.close()
            del steps
        with Pipeline.open(bundle, backend="cpu") as pipe:
            print("drawn:", pipe.generate("two red circles", seed=1).size)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "lost: " in done.stdout, done.stdout + done.stderr
    assert "restart the process" in done.stdout
    side = Bundle(bundled_folder(), check_files=False).spec.image_size
    assert f"drawn: ({side}, {side})" in done.stdout


def test_the_cpu_draws_where_the_gpu_was_lost() -> None:
    """What the message advises, in the process that lost it."""
    bundle = Bundle(bundled_folder(), check_files=False)
    context = emulated_gpu(900 << 20)
    losing = Losing(context, 10**6)
    with pytest.raises(GpuLostError), opened(bundle, context) as pipe:
        losing.left = 1
        pipe.generate("a tree", seed=1)
    with Pipeline.open(bundle, backend="cpu") as pipe:
        assert pipe.generate("a tree", seed=1).size == (bundle.spec.image_size,) * 2
