"""The cuDNN handle with a double of the package: its life, its scratch, and how its errors arrive."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_scales import emulated_gpu

from hart_edge.runtime.errors import EngineError, MissingPackageError
from hart_edge.runtime.fused.cudnn import Cudnn


class Graph:
    """Records what is done to it; `size` bytes of scratch."""

    def __init__(self, calls: list[Any], size: int, **how: Any) -> None:
        self._calls, self._size = calls, size
        calls.append(("pygraph", how["io_data_type"]))

    def get_workspace_size(self) -> int:
        return self._size

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
    double.pygraph = lambda **how: Graph(calls, double.size, **how)
    monkeypatch.setitem(sys.modules, "cudnn", double)
    return double


@pytest.fixture
def cudnn(package: SimpleNamespace) -> Cudnn:
    context = emulated_gpu(1 << 20)
    return Cudnn(context.device, context.stream)


def test_scratch_that_was_used_stays_where_it_is(package: SimpleNamespace, cudnn: Cudnn) -> None:
    small = cudnn.build("one", "float16", lambda graph: {"x": "X"})
    before = cudnn.scratch
    package.size = 10_000
    cudnn.build("two", "float16", lambda graph: {})
    assert cudnn.scratch != before
    assert [buffer.size for buffer in cudnn._scratches] == [100, 10_000]
    package.size = 50
    cudnn.build("three", "float16", lambda graph: {})
    assert len(cudnn._scratches) == 2
    small.run(x=4096)
    assert package.calls[-1] == ("execute", {"X": 4096}, cudnn.scratch)


@pytest.mark.parametrize(
    ("dtype", "choose", "left_out"),
    [("float32", True, ["tensor core", "down", "varies"]), ("float16", True, ["reduced", "varies"]), ("float16", False, None)],
)
def test_engines_that_are_not_exact_are_left_out(
    package: SimpleNamespace, cudnn: Cudnn, dtype: str, choose: bool, left_out: list[str] | None
) -> None:
    cudnn.build("a graph", dtype, lambda graph: {}, choose)
    asked = [call[1] for call in package.calls if call[0] == "deselect_numeric_notes"]
    assert asked == ([] if left_out is None else [left_out])


def test_errors_say_what_was_done_and_the_handle_is_closed_once(package: SimpleNamespace, cudnn: Cudnn) -> None:
    def refuse(graph: Any) -> dict[str, Any]:
        raise RuntimeError("no such shape")

    with pytest.raises(EngineError, match="describing a graph failed: no such shape"):
        cudnn.build("a graph", "float16", refuse)
    for _ in range(2):
        cudnn.close()
    assert [call for call in package.calls if call[0] == "destroy"] == [("destroy", "handle")]
    with pytest.raises(EngineError, match="after it was closed"):
        cudnn.handle  # noqa: B018


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    context = emulated_gpu(1 << 20)
    with pytest.raises(MissingPackageError, match=r"hart-edge\[fused\]"):
        Cudnn(context.device, context.stream)
