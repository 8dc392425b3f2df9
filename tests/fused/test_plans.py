"""Measured plans: which candidate wins, what is left out, and what the next start finds; with a double's clock and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from components import allocated, put
from test_attention_fused import SHAPES as ATTENTIONS
from test_conv import SIZES, arrays, computed

from hart_edge.plugins import Buffer, transpose
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import EngineError, GpuError, GpuLostError, GpuMemoryError, HartWarning, MissingPackageError
from hart_edge.runtime.fused.attention import Attention
from hart_edge.runtime.fused.blas import Matmul
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.conv import ConvShape
from hart_edge.runtime.fused.cudnn import Cudnn
from hart_edge.runtime.fused.linear import Linear
from hart_edge.runtime.fused.plans import LAUNCHES, REPEATS, Plans
from hart_edge.runtime.fused.workspace import Memory
from hart_edge.runtime.kernel_cache import KernelCache

INFO = SimpleNamespace(name="card", capability=90, memory=1 << 30, driver_version=13000)


class Clock:
    """A device and its stream whose time is what candidates take, in milliseconds; None: refused."""

    def __init__(self, times: dict[int, float | None], info: SimpleNamespace = INFO) -> None:
        self.times, self.info, self.lost = times, info, False
        self.now, self.runs = 0.0, dict.fromkeys(times, 0)

    def run(self, candidate: int) -> None:
        taken = self.times[candidate]
        if taken is None:
            raise (GpuMemoryError if candidate % 2 else EngineError)("refused.")
        self.now += taken
        self.runs[candidate] += 1

    def event(self) -> Clocked:
        return Clocked(self)

    def capture(self, record: Callable[[], None]) -> Clocked:
        before = self.now
        record()
        taken, self.now = self.now - before, before
        return Clocked(self, taken)


class Clocked:
    """Stands for an event and for a graph."""

    def __init__(self, clock: Clock, taken: float = 0.0) -> None:
        self._clock, self._taken, self.at = clock, taken, 0.0

    def record(self, stream: Clock) -> None:
        self.at = self._clock.now

    def synchronize(self) -> None: ...

    def since(self, start: Clocked) -> float:
        return self.at - start.at

    def launch(self, stream: Clock) -> None:
        self._clock.now += self._taken

    def __enter__(self) -> Clocked:
        return self

    def __exit__(self, *_: object) -> None: ...


def plans_on(clock: Any, folder: Path | None = None) -> Plans:
    return Plans(clock, clock, folder)


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({0: 3.0, 1: 1.0, 2: 2.0}, 1),
        ({0: 1.0, 1: 0.98}, 0),  # hardly faster: noise
        ({0: None, 1: None, 2: 5.0}, 2),
        ({0: None, 1: None}, None),
        ({}, None),
    ],
)
def test_the_fastest_candidate_wins(times: dict[int, float | None], best: int | None) -> None:
    clock = Clock(times)
    assert plans_on(clock).fastest(times, clock.run) == best


def test_a_hopeless_candidate_is_not_measured_further_and_a_short_one_is_repeated() -> None:
    clock = Clock({0: 1.0, 1: 2.0, 2: 0.01})
    assert plans_on(clock).fastest((0, 1, 2), clock.run) == 2
    assert clock.runs == {0: 3, 1: 2, 2: 2 + REPEATS}  # a capture counts as one run of each of its launches
    assert LAUNCHES > 1


def test_a_lost_gpu_ends_the_measuring() -> None:
    clock = Clock({0: 1.0, 1: 1.0})
    clock.lost = True
    with pytest.raises(GpuLostError, match="while plans were measured"):
        plans_on(clock).fastest((0, 1), clock.run)


def test_what_is_kept_is_found_on_a_card_like_this_one_only(tmp_path: Path) -> None:
    clock = Clock({})
    plans_on(clock, tmp_path / "plans").keep("work", {"a": 1}, b"data\n\0")
    found = plans_on(clock, tmp_path / "plans").find("work")
    assert found is not None
    assert (found[0]["a"], found[1]) == (1, b"data\n\0")
    assert plans_on(clock, tmp_path / "plans").find("other work") is None
    for change in ({"name": "other card"}, {"capability": 89}, {"memory": 2}, {"driver_version": 13010}):
        other = SimpleNamespace(**{**vars(INFO), **change})
        assert plans_on(Clock({}, other), tmp_path / "plans").find("work") is None
    (entry,) = (tmp_path / "plans").glob("*.bin")
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)
    assert plans_on(clock, tmp_path / "plans").find("work") is None


def test_without_a_folder_that_can_be_written_plans_are_measured_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    plans = plans_on(Clock({}), tmp_path / "file" / "plans")
    with pytest.warns(HartWarning, match="measured plans cannot be kept in"):
        plans.keep("work", {}, b"data")
    assert plans.find("work") is None
    plans_on(Clock({})).keep("work", {}, b"data")
    assert plans_on(Clock({})).find("work") is None


@pytest.mark.gpu
def test_a_card_tells_a_large_launch_from_a_small_one(gpu_context: FusedContext) -> None:
    context = gpu_context
    with context.device.buffer(2 << 28) as memory:
        memory.fill(0, context.stream)
        sides = (8192, 64, 4096)

        def run(candidate: int) -> None:
            side = sides[candidate]
            source, target = (
                Buffer(memory.address, (1, side, side), "float32"),
                Buffer(memory.address + (1 << 28), (1, side, side), "float32"),
            )
            context.launch(transpose.launch(source, target))

        plans = Plans(context.device, context.stream)
        assert plans.fastest((0, 1, 2), run) == 1
        assert plans.fastest((0, 2), run) == 2
        assert np.isfinite(plans._time(0, run, float("inf")))


@pytest.mark.gpu
def test_the_next_start_takes_what_was_kept_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution, an attention and a product: measured and kept by one process' context, taken by the next."""
    shape = ConvShape(*SIZES[0], dtype="float16", add=True)
    operands = arrays(shape)
    results = []
    for start in range(2):
        try:
            context = FusedContext(cache=KernelCache(tmp_path))
        except (GpuError, MissingPackageError) as error:
            pytest.skip(f"no usable GPU: {error}")
        with context:
            if start:
                monkeypatch.setattr(Cudnn, "_planned", lambda *_: pytest.fail("cuDNN planned anew"))
                monkeypatch.setattr(Matmul, "_find", lambda *_: pytest.fail("cuBLASLt was asked anew"))
                monkeypatch.setattr(Plans, "fastest", lambda *_: pytest.fail("candidates were measured anew"))
            convolved, convolution = computed(context, shape, operands)
            assert convolution.fused
            results.append((convolved, attended(context), multiplied(context)))
    assert len(list((tmp_path / "plans").glob("*.bin"))) == 3
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


def attended(context: FusedContext) -> Array:
    shape, rng = ATTENTIONS[3], np.random.default_rng(3)
    q, cache = (shape.rows, shape.tokens, shape.heads, shape.head_dim), (shape.rows, shape.heads, shape.capacity, shape.head_dim)

    def ask(memory: Memory) -> list[Buffer]:
        return [memory.buffer(name, size, shape.dtype) for name, size in {"q": q, "k": cache, "v": cache, "y": q}.items()]

    with allocated(context, ask) as buffers:
        for buffer in buffers[:3]:
            put(context, buffer, rng.standard_normal(buffer.shape))
        attention = Attention(context, shape)
        assert attention.by_cudnn, attention.refusal
        attention.run(*buffers)
        return context.download(buffers[3])


def multiplied(context: FusedContext) -> Array:
    rng = np.random.default_rng(4)

    def ask(memory: Memory) -> list[Buffer]:
        return [memory.buffer(name, size, "float16") for name, size in {"x": (512, 768), "w": (768, 256), "y": (512, 256)}.items()]

    with allocated(context, ask) as (x, w, y):
        for buffer in (x, w, y):
            put(context, buffer, rng.standard_normal(buffer.shape))
        Linear(context.blas, 512, w).run(x, y, context.stream, residual=y)
        return context.download(y)
