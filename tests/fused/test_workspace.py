"""Planning device memory: what is counted is what is allocated, phases share, names keep their shape."""

from __future__ import annotations

import pytest
from emulator import emulated

from hart_edge.runtime.errors import InputError
from hart_edge.runtime.fused.buffers import entry, nbytes, prefix, rows, view
from hart_edge.runtime.fused.workspace import ALIGNMENT, Memory, Plan, Workspace


def ask(memory: Memory) -> list:
    return [
        memory.buffer("state", (3, 5), "float32"),
        memory.buffer("a", (1000,), "float16", "one"),
        memory.buffer("b", (7,), "uint8", "one"),
        memory.buffer("c", (9, 9), "float32", "two"),
        memory.buffer("more state", (2,), "int64"),
    ]


def test_bytes_are_known_before_anything_is_allocated() -> None:
    plan = Plan()
    ask(plan)
    assert plan.phases == {"": 2 * ALIGNMENT, "one": 2048 + ALIGNMENT, "two": 512}
    assert plan.bytes == 2 * ALIGNMENT + 2048 + ALIGNMENT
    assert [entry.bytes for entry in plan.entries.values()] == [60, 2000, 7, 324, 16]


def test_buffers_of_a_workspace_lie_apart_unless_their_phases_differ() -> None:
    context = emulated(1 << 16)
    plan = Plan()
    ask(plan)
    workspace = Workspace(context.device, context.stream, plan)
    state, a, b, c, more = ask(workspace)
    assert all(buffer.address % ALIGNMENT == 0 for buffer in (state, a, b, c, more))
    lasting = [(buffer.address, buffer.address + nbytes(buffer)) for buffer in (state, more, a, b)]
    assert all(x[1] <= y[0] or y[1] <= x[0] for i, x in enumerate(lasting) for y in lasting[:i])
    assert c.address == a.address
    assert ask(workspace) == [state, a, b, c, more]


def test_a_name_keeps_what_it_was_planned_with() -> None:
    plan = Plan()
    ask(plan)
    with pytest.raises(InputError, match="buffer a is float16"):
        plan.buffer("a", (1000,), "float32", "one")
    with pytest.raises(InputError, match="sizes of 1 or more"):
        plan.buffer("d", (0,), "float32")
    context = emulated(1 << 16)
    with pytest.raises(InputError, match="buffer d was not planned; planned are state, a"):
        Workspace(context.device, context.stream, plan).buffer("d", (1,), "float32")


def test_views_stay_inside_their_buffer() -> None:
    buffer = Plan().buffer("x", (4, 6), "float16")
    assert view(buffer, 2, 12).shape == (2, 12)
    assert (rows(buffer, 1, 3).address, rows(buffer, 1, 3).shape) == (12, (2, 6))
    assert (entry(buffer, 3).address, entry(buffer, 3).shape) == (36, (6,))
    assert prefix(buffer, 5, 2).shape == (5, 2)
    for wrong in (lambda: view(buffer, 5, 5), lambda: rows(buffer, 3, 5), lambda: entry(buffer, 4), lambda: prefix(buffer, 5, 5)):
        with pytest.raises(InputError):
            wrong()
