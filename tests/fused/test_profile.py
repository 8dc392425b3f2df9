"""What a generation does on the card, from a profile: no large copy to or from the host, and no allocation from the second on.

Reading a profile is tested everywhere, with a trace as torch writes it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from gpu_profile import OUTSIDE, counted_allocations, profiled, read_trace
from pipelines import opened

from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.fused.context import FusedContext

PROMPTS = ["two red circles", "a small green star"]


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


TRACE = [
    {"ph": "M", "name": "process_name", "args": {}},
    event("user_annotation", "stage text_encoder", 100, 50),
    event("user_annotation", "stage transformer", 200, 100),
    event("user_annotation", "stage transformer", 400, 100),
    event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 110, 1, bytes=2400),
    event("kernel", "void hart::rms_norm<__half, 8>(float*)", 210, 30),
    event("kernel", "sm90_gemm", 410, 60),
    event("kernel", "sm90_gemm", 480, 10),
    event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 490, 1, bytes=9),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 600, 5, bytes=300),
    event("gpu_memset", "Memset (Device)", 610, 5, bytes=7),
    event("cuda_runtime", "cudaMalloc", 120, 9),
    event("cuda_runtime", "cudaLaunchKernel", 130, 9),
    event("cuda_driver", "cuMemAlloc_v2", 140, 9),
    event("gpu_user_annotation", "stage transformer", 210, 30),
]


def test_a_trace_is_read_by_stage() -> None:
    found = read_trace(TRACE, ["allocate 5"])
    assert found.stages == {"text_encoder": 0.05, "transformer": 0.2}
    assert found.crossings("HtoD") == [2400]
    assert found.crossings("DtoH") == [300]
    assert found.allocations == ["cudaMalloc", "cuMemAlloc_v2", "allocate 5"]
    first, second, third = found.top("transformer")
    assert (first["name"], first["calls"]) == ("sm90_gemm", 2)
    assert first["ms"] == pytest.approx(0.07)
    assert first["share"] == pytest.approx(70 / 101)
    assert (second["name"], third["name"]) == ("hart::rms_norm<__half, 8>", "Memcpy DtoD ")
    assert [work.stage for work in found.work if work.kind == "gpu_memset"] == [OUTSIDE]
    assert found.to_json()["stages"]["text_encoder"]["busy ms"] == pytest.approx(0.001)


def test_allocations_through_the_runtimes_door_are_noted() -> None:
    class Driver:
        def allocate(self, size: int) -> int:
            return size

        def pin(self, size: int) -> int:
            return -size

    device: Any = SimpleNamespace(driver=Driver())
    with counted_allocations(device) as noted:
        assert (device.driver.allocate(3), device.driver.pin(4)) == (3, -4)
    device.driver.allocate(5)
    assert noted == ["allocate 3", "pin 4"]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
def test_nothing_but_the_prompt_goes_up_and_nothing_but_the_picture_comes_down(gpu_context: FusedContext, batch: int) -> None:
    """From the second picture on nothing is allocated either, by anybody."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that can use the GPU, for its profiler")
    torch.cuda.init()
    bundle = Bundle(bundled_folder(), check_files=False)
    spec = bundle.spec
    with opened(bundle, gpu_context) as pipe:
        for seed in (1, 2):
            pipe.generate_batch(PROMPTS[:batch], seeds=list(range(seed, seed + batch)))
        found = profiled(pipe, gpu_context.device, PROMPTS[:batch], list(range(3, 3 + batch)))
    assert set(found.stages) == {"text_encoder", "context", "transformer", "sampling", "transition", "residual", "decoder"}
    assert sum(work.kind == "kernel" for work in found.work) > 100
    prompt, picture = batch * spec.context_tokens * 8, batch * spec.image_size**2 * 3
    up, down = found.crossings("HtoD"), found.crossings("DtoH")
    assert up
    assert max(up) <= prompt, up
    assert sum(up) <= 4 * prompt, up  # ids, mask, positions; seeds and the like
    assert sum(down) == picture, down  # the driver may move it in pieces
    assert found.allocations == []
