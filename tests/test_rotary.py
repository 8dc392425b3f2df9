"""Rotary tables, used as `x·cos + swap(x)·sin`, against the reference's two formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import assert_close

from hart_edge.export.reference.embeddings import apply_rotary, image_angles, text_angles
from hart_edge.runtime.rotary import image_tables, text_tables


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([second, first], axis=-1) * sin


def heads(rows: int, tokens: int, head_dim: int) -> np.ndarray:
    return np.random.default_rng(tokens).uniform(-1, 1, (rows, 3, tokens, head_dim)).astype(np.float32)


@pytest.mark.parametrize("head_dim", [4, 32, 64])
@pytest.mark.parametrize("tokens", [1, 19, 111])
def test_text_tables_follow_the_reference(head_dim: int, tokens: int) -> None:
    positions = np.stack([np.arange(tokens), np.minimum(np.arange(tokens), 5), np.full(tokens, -1), np.zeros(tokens)]).astype(np.int64)
    cos, sin = text_tables(positions, head_dim)
    assert cos.shape == sin.shape == (4, 1, tokens, head_dim)
    assert cos.dtype == sin.dtype == np.float32
    x = heads(4, tokens, head_dim)
    expected = apply_rotary(torch.from_numpy(x), *text_angles(torch.from_numpy(positions), head_dim))
    assert_close(rotate(x, cos, sin), expected, "rotary table")


@pytest.mark.parametrize("head_dim", [4, 32, 64])
@pytest.mark.parametrize(("patch_num", "grid"), [(1, 19), (3, 19), (7, 64), (19, 19), (27, 64)])
def test_image_tables_follow_the_reference(head_dim: int, patch_num: int, grid: int) -> None:
    offset = np.array([18, -1, 0], np.int64)
    cos, sin = image_tables(patch_num, grid, offset, head_dim)
    assert cos.shape == sin.shape == (3, 1, patch_num**2, head_dim)
    assert cos.dtype == sin.dtype == np.float32
    x = heads(3, patch_num**2, head_dim)
    expected = apply_rotary(torch.from_numpy(x), *image_angles(patch_num, grid, torch.from_numpy(offset), head_dim))
    assert_close(rotate(x, cos, sin), expected, "rotary table")


def test_text_rotation_keeps_lengths() -> None:
    x = heads(1, 19, 32)
    rotated = rotate(x, *text_tables(np.arange(19)[None], 32))
    assert_close(np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), "float32")


def test_image_tables_are_no_rotation() -> None:
    """Row and column angles differ off the diagonal; a backend's rotary operator would keep the lengths."""
    x = heads(1, 9, 32)
    change = np.abs(np.linalg.norm(rotate(x, *image_tables(3, 9, np.zeros(1, np.int64), 32)), axis=-1) - np.linalg.norm(x, axis=-1))
    diagonal = np.eye(3, dtype=bool).reshape(-1)
    assert_close(change[:, :, diagonal], np.zeros((1, 3, 3)), "rotary table")
    assert change[:, :, ~diagonal].min() > 1e-3


def test_position_zero_leaves_the_input() -> None:
    x = heads(2, 1, 64)
    np.testing.assert_array_equal(rotate(x, *text_tables(np.zeros((2, 1), np.int64), 64)), x)
    np.testing.assert_array_equal(rotate(x, *image_tables(1, 64, np.zeros(2, np.int64), 64)), x)
