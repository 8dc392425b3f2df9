"""The cuDNN handle with a double of the package: its life, its scratch, and how its errors arrive."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_scales import emulated_gpu
from kept_plans import Chosen

from hart_edge.runtime.errors import EngineError, MissingPackageError
from hart_edge.runtime.fused.cudnn import MOST_SCRATCH, Cudnn


class Graph:
    """Records what is done to it; `size` bytes of scratch, `plans` in its list."""

    def __init__(self, calls: list[Any], size: int, plans: int, **how: Any) -> None:
        self._calls, self._size, self._plans, self._more = calls, size, plans, 0
        calls.append(("pygraph", how.get("io_data_type")))

    def build_plan_at_index(self, index: int) -> None:
        self._calls.append(("build_plan_at_index", index))
        self._more = index * (40 << 20) if self._plans > 2 else 0

    def get_workspace_size(self) -> int:
        return self._size + self._more

    def get_execution_plan_count(self) -> int:
        return self._plans

    def serialize(self, as_bytes: bool) -> bytes:
        assert as_bytes
        return b"plan"

    def deserialize(self, handle: Any, data: bytes) -> None:
        if data != b"plan":
            raise RuntimeError("not a plan")
        self._calls.append(("deserialize", handle))

    def execute(self, pack: dict[Any, int], scratch: int, handle: Any) -> None:
        self._calls.append(("execute", pack, scratch))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._calls.append((name, *arguments))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    calls: list[Any] = []
    double = SimpleNamespace(
        calls=calls,
        size=100,
        plans=0,
        __version__="1.32",
        backend_version=lambda: 92801,
        create_handle=lambda: "handle",
        set_stream=lambda handle, stream: calls.append(("set_stream", stream)),
        destroy_handle=lambda handle: calls.append(("destroy", handle)),
        data_type=SimpleNamespace(HALF="half", FLOAT="float"),
        heur_mode=SimpleNamespace(A="a", FALLBACK="fallback"),
        build_plan_policy=SimpleNamespace(HEURISTICS_CHOICE="choice"),
        numerical_note=SimpleNamespace(
            TENSOR_CORE="tensor core", DOWN_CONVERT_INPUTS="down", REDUCED_PRECISION_REDUCTION="reduced", NONDETERMINISTIC="varies"
        ),
    )
    double.pygraph = lambda **how: Graph(calls, double.size, double.plans, **how)
    monkeypatch.setitem(sys.modules, "cudnn", double)
    return double


@pytest.fixture
def cudnn(package: SimpleNamespace) -> Cudnn:
    return opened(Chosen())


def opened(plans: Chosen) -> Cudnn:
    context = emulated_gpu(80 << 20)
    return Cudnn(context.device, context.stream, plans)  # type: ignore[arg-type]


def tensor(uid: int) -> SimpleNamespace:
    return SimpleNamespace(get_uid=lambda: uid)


def test_scratch_that_was_used_stays_where_it_is(package: SimpleNamespace, cudnn: Cudnn) -> None:
    small = cudnn.build("one", 1, "float16", lambda graph: {"x": tensor(7)})
    before = cudnn.scratch
    package.size = 10_000
    cudnn.build("two", 2, "float16", lambda graph: {})
    assert cudnn.scratch != before
    assert [buffer.size for buffer in cudnn._scratches] == [100, 10_000]
    package.size = 50
    cudnn.build("three", 3, "float16", lambda graph: {})
    assert len(cudnn._scratches) == 2
    small.run(x=4096)
    assert package.calls[-1] == ("execute", {7: 4096}, cudnn.scratch)


@pytest.mark.parametrize(
    ("dtype", "choose", "left_out"),
    [("float32", True, ["tensor core", "down", "varies"]), ("float16", True, ["reduced", "varies"]), ("float16", False, None)],
)
def test_engines_that_are_not_exact_are_left_out(
    package: SimpleNamespace, cudnn: Cudnn, dtype: str, choose: bool, left_out: list[str] | None
) -> None:
    cudnn.build("a graph", (), dtype, lambda graph: {}, choose)
    asked = [call[1] for call in package.calls if call[0] == "deselect_numeric_notes"]
    assert asked == ([] if left_out is None else [left_out])


def test_errors_say_what_was_done_and_the_handle_is_closed_once(package: SimpleNamespace, cudnn: Cudnn) -> None:
    def refuse(graph: Any) -> dict[str, Any]:
        raise RuntimeError("no such shape")

    with pytest.raises(EngineError, match="describing a graph failed: no such shape"):
        cudnn.build("a graph", (), "float16", refuse)
    for _ in range(2):
        cudnn.close()
    assert [call for call in package.calls if call[0] == "destroy"] == [("destroy", "handle")]
    with pytest.raises(EngineError, match="after it was closed"):
        cudnn.handle  # noqa: B018


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    context = emulated_gpu(1 << 20)
    with pytest.raises(MissingPackageError, match=r"hart-edge\[fused\]"):
        Cudnn(context.device, context.stream, Chosen())  # type: ignore[arg-type]


def done(package: SimpleNamespace, *names: str) -> list[Any]:
    return [call for call in package.calls if call[0] in names]


def test_the_first_run_measures_the_plans_and_the_next_start_takes_the_fastest(package: SimpleNamespace) -> None:
    package.plans, plans = 2, Chosen(1)
    first = opened(plans)
    graph = first.build("a graph", (3, 4), "float16", lambda graph: {"x": tensor(7)})
    for _ in range(2):
        graph.run(x=4096)
    run = ("execute", {7: 4096}, first.scratch)
    assert done(package, "build_plan_at_index", "execute") == [
        ("build_plan_at_index", 0), run, ("build_plan_at_index", 1), run, ("build_plan_at_index", 1), run, run,
    ]  # fmt: skip
    assert list(plans.kept) == ["cuDNN 92801, frontend 1.32: a graph, (3, 4), float16, True"]
    package.calls.clear()
    second = opened(plans)
    second.build("a graph", (3, 4), "float16", lambda graph: {}).run(x=64)
    assert done(package, "deserialize", "create_execution_plans", "build_plan_at_index", "execute") == [
        ("deserialize", "handle"), ("execute", {7: 64}, second.scratch),
    ]  # fmt: skip


def test_a_kept_plan_that_cudnn_does_not_take_is_planned_again(package: SimpleNamespace) -> None:
    package.plans, plans = 1, Chosen(0)
    plans.kept["cuDNN 92801, frontend 1.32: a graph, 1, float16, True"] = {"tensors": {"x": 9}}, b"of another time"
    opened(plans).build("a graph", 1, "float16", lambda graph: {"x": tensor(7)}).run(x=64)
    assert len(done(package, "create_execution_plans")) == 1
    assert list(plans.kept.values()) == [({"tensors": {"x": 7}}, b"plan")]


def test_a_plan_that_wants_too_much_scratch_is_not_measured(package: SimpleNamespace) -> None:
    """The double's third plan wants 80 MiB. What the trials had is given back; the second, which wins, keeps 40."""
    context = emulated_gpu(120 << 20)

    class Sparing(Chosen):
        def fastest(self, candidates: Iterable[int], run: Callable[[int], None]) -> int | None:
            run(1)
            with pytest.raises(EngineError, match="takes 83886180 bytes of scratch"):
                run(2)
            return 1

    package.plans = 3
    cudnn = Cudnn(context.device, context.stream, Sparing())  # type: ignore[arg-type]
    cudnn.build("a graph", 1, "float16", lambda graph: {"x": tensor(7)}).run(x=64)
    assert context.device.use.peak == 100 + MOST_SCRATCH
    assert context.device.use.bytes == 100 + 100 + (40 << 20)
