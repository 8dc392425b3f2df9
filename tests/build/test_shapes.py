"""How far dimensions vary, against numbers worked out by hand for scales of 1, 3 and 5 and 7 context tokens."""

from __future__ import annotations

import pytest

from hart_edge.export.build.shapes import dimension_ranges, shape_range
from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.spec import ModelSpec


def test_ranges(tiny_spec: ModelSpec) -> None:
    assert dimension_ranges(tiny_spec, batch=3) == {
        "B": (1, 1, 3),
        "R": (1, 2, 6),
        "L": (7, 25, 25),
        "p": (1, 3, 3),
        "q": (3, 5, 5),
        "rows": (25, 25, 75),
    }


def test_more_context_than_tokens(tiny_spec: ModelSpec) -> None:
    spec = ModelSpec.from_json(tiny_spec.to_json() | {"context_tokens": 300})
    assert dimension_ranges(spec, 1)["L"] == (9, 25, 300)


def test_shapes(tiny_spec: ModelSpec) -> None:
    ranges = dimension_ranges(tiny_spec, batch=3)
    assert shape_range(("2*rows", 13), ranges) == ((50, 13), (50, 13), (150, 13))
    assert shape_range(("R", 1, "L", 4), ranges) == ((1, 1, 7, 4), (2, 1, 25, 4), (6, 1, 25, 4))


@pytest.mark.parametrize("dimension", ["s77", "B + 1", "q**2"])
def test_unknown_dimension(dimension: str, tiny_spec: ModelSpec) -> None:
    with pytest.raises(EngineError, match="unknown dimension"):
        shape_range((dimension,), dimension_ranges(tiny_spec, 1))
