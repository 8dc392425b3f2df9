"""`take_rows`: the truth against torch's embedding, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, at, values

from hart_edge.plugins import take_rows as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.runtime.errors import InputError

SIZES = [(1, 1, 1), (11, 19, 111), (4096, 64, 1536), (7, 9, 40)]
"""Entries, indices, width."""


def index_of(entries: int, count: int) -> np.ndarray:
    return np.random.default_rng(entries).integers(0, entries, count)


@pytest.mark.parametrize("size", SIZES)
def test_truth_is_an_embedding_for_both_halves(size: tuple[int, int, int]) -> None:
    entries, count, width = size
    table, index = values((entries, width)), index_of(entries, count)
    once = F.embedding(torch.from_numpy(index), torch.from_numpy(table))
    np.testing.assert_array_equal(op.take_rows(table, index, 2 * count), torch.cat([once, once]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_grid_covers_every_element(size: tuple[int, int, int], dtype: str) -> None:
    entries, count, width = size
    launch = op.launch(at(4096, (entries, width), dtype), at(4096, (count,), "int64"), at(4096, (2 * count, width), dtype))
    lanes = 16 // ITEM_BYTES[dtype] if width % (16 // ITEM_BYTES[dtype]) == 0 else 1
    assert launch.grid[0] == 2 * count
    assert width <= launch.grid[1] * launch.block[0] * lanes < width + launch.block[0] * lanes
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    table, y = at(0, (11, 64)), at(0, (6, 64))
    with pytest.raises(InputError, match="multiple of the 4 indices"):
        op.launch(table, at(0, (4,), "int64"), y)
    with pytest.raises(InputError, match=r"index is float32 \[3\]"):
        op.launch(table, at(0, (3,)), y)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel(gpu: Gpu, size: tuple[int, int, int], dtype: str, misalign: bool) -> None:
    entries, count, width = size
    table, index = values((entries, width), dtype), index_of(entries, count)
    y = gpu.empty((2 * count, width), dtype)
    gpu.run(op.launch(gpu.put(table, dtype, misalign), gpu.put(index), y))
    np.testing.assert_array_equal(gpu.get(y), op.take_rows(table, index, 2 * count))
