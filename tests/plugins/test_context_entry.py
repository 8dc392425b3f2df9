"""`context_entry`: the truth against torch, the launch, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import Gpu, assert_output, at, values
from tolerances import assert_close

from hart_edge.plugins import context_entry as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.runtime.errors import InputError

SHAPES = [(1, 1, 1), (2, 19, 111), (1, 300, 1536), (3, 7, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_truth_is_the_context_entry_of_the_reference(shape: tuple[int, int, int]) -> None:
    e, level = values(shape), values(shape[2:], seed=1)
    x, pooled = op.context_entry(e, level)
    t = torch.from_numpy(e)
    assert_close(x, t + torch.from_numpy(level), "float32")
    assert_close(pooled, torch.nn.functional.silu(t.amax(dim=1)), "float32")


def test_wrong_tensors_are_named() -> None:
    e, pooled = at(0, (2, 7, 40)), at(0, (2, 40))
    assert op.launch(e, at(0, (40,)), e, pooled).grid == (2, 2, 1)
    with pytest.raises(InputError, match=r"pooled is float32 \[2, 41\]"):
        op.launch(e, at(0, (40,)), e, at(0, (2, 41)))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("in_place", [True, False])
def test_kernel(gpu: Gpu, shape: tuple[int, int, int], dtype: str, in_place: bool) -> None:
    e, level = values(shape, dtype), values(shape[2:], dtype, 1)
    source, pooled = gpu.put(e, dtype), gpu.empty((shape[0], shape[2]), dtype)
    x = source if in_place else gpu.empty(shape, dtype)
    gpu.run(op.launch(source, gpu.put(level, dtype), x, pooled))
    want = op.context_entry(e, level)
    assert_output(gpu.get(x), want[0], dtype)
    assert_output(gpu.get(pooled), want[1], dtype)
    assert np.isfinite(gpu.get(pooled).astype(np.float32)).all()
