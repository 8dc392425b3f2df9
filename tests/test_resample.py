"""Resize matrices against torch's own bicubic and area interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from hart_edge.runtime.resample import area_matrix, bicubic_matrix

UP = [(1, 64), (2, 64), (3, 8), (5, 9), (7, 9), (9, 64), (13, 32), (24, 32), (27, 64), (36, 64), (48, 64), (64, 64), (19, 111), (111, 989)]
DOWN = [(64, 2), (64, 3), (64, 5), (64, 27), (64, 36), (64, 48), (64, 64), (32, 13), (9, 8), (8, 3), (16, 1), (111, 19), (989, 111)]


def signal(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows * 1000 + columns).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize(("source", "target"), UP + DOWN)
def test_bicubic_matrix_is_torch_bicubic_along_one_axis(source: int, target: int) -> None:
    x = signal(source, 3)
    expected = F.interpolate(torch.from_numpy(x)[None, None].double(), size=(target, 3), mode="bicubic", align_corners=False)
    assert_close(bicubic_matrix(source, target) @ x, expected[0, 0], "float32")


@pytest.mark.parametrize(("source", "target"), UP + DOWN)
def test_area_matrix_is_torch_area_along_one_axis(source: int, target: int) -> None:
    x = signal(source, 3)
    expected = F.interpolate(torch.from_numpy(x)[None, None].double(), size=(target, 3), mode="area")
    assert_close(area_matrix(source, target) @ x, expected[0, 0], "float32")


@pytest.mark.parametrize(("matrix", "mode", "source", "target"), [(bicubic_matrix, "bicubic", 19, 64), (area_matrix, "area", 64, 27)])
def test_two_axes_are_two_products(matrix, mode: str, source: int, target: int) -> None:
    x, m = signal(source, source), matrix(source, target)
    expected = F.interpolate(torch.from_numpy(x)[None, None].double(), size=(target, target), mode=mode)
    assert_close(m @ x @ m.T, expected[0, 0], "float32")


@pytest.mark.parametrize("matrix", [bicubic_matrix, area_matrix])
@pytest.mark.parametrize(("source", "target"), UP + DOWN)
def test_rows_sum_to_one(matrix, source: int, target: int) -> None:
    m = matrix(source, target)
    assert m.dtype == np.float32
    assert_close(m.sum(axis=1), np.ones(target), "float32")


@pytest.mark.parametrize("matrix", [bicubic_matrix, area_matrix])
def test_equal_sizes_give_the_identity(matrix) -> None:
    np.testing.assert_array_equal(matrix(19, 19), np.eye(19, dtype=np.float32))


def test_one_source_cell_is_repeated() -> None:
    assert_close(bicubic_matrix(1, 64), np.ones((64, 1)), "float32")
