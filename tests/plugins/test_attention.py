"""`attention`: the truth against torch and the reference's mask, the launches, the kernel against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, assert_output, at, sanitized, values
from tolerances import assert_close

from hart_edge.plugins import attention as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Case:
    """mask: number of prompt tokens of every row, or nothing for an attention without mask."""

    rows: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    before: int
    capacity: int
    scale: float
    prompts: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.before + self.tokens

    def tensors(self, dtype: str = "float32") -> tuple[Array, Array, Array]:
        """q [R, L, H, D] and the caches; what lies beyond the valid positions is not a number."""
        q = values((self.rows, self.tokens, self.heads, self.head_dim), dtype)
        cache = (self.rows, self.kv_heads, self.capacity, self.head_dim)
        k, v = (values(cache, dtype, seed) for seed in (1, 2))
        for x in (k, v):
            x[:, :, self.length :] = np.nan
        return q, k, v

    def mask(self) -> tuple[Array, Array] | tuple[None, None]:
        """mask and first, or none."""
        if not self.prompts:
            return None, None
        mask = (np.arange(self.tokens) < np.array(self.prompts)[:, None]).astype(np.int64)
        return mask, op.first_positions(mask, self.before)


CASES = [
    Case(2, 19, 3, 3, 20, 0, 19, 0.05),
    Case(2, 4, 4, 4, 64, 33, 111, 0.03),
    Case(1, 111, 2, 2, 128, 50, 170, 0.09),
    Case(2, 37, 2, 1, 160, 5, 64, 0.08),
    Case(3, 32, 4, 2, 32, 0, 32, 0.18, prompts=(32, 7, 0)),  # a full prompt, a padded one, an empty one
    Case(2, 33, 6, 2, 64, 11, 50, 0.125, prompts=(0, 20)),
    Case(2, 99, 2, 1, 32, 40, 150, 0.18, prompts=(3, 70)),  # whole tiles of keys count for no query
]


@pytest.mark.parametrize("case", CASES)
def test_truth_is_scaled_dot_product_attention(case: Case) -> None:
    from hart_edge.export.reference.text import attention_mask

    q, k, v = case.tensors()
    mask, first = case.mask()
    allowed = None if mask is None else attention_mask(torch.from_numpy(mask), case.before)
    keys, queries = (torch.from_numpy(x[:, :, : case.length].copy()) for x in (k, v)), torch.from_numpy(q).transpose(1, 2)
    want = F.scaled_dot_product_attention(queries, *keys, attn_mask=allowed, scale=case.scale, enable_gqa=True)
    assert_close(op.attention(q, k, v, case.length, case.scale, mask, first), want.transpose(1, 2), "kernel float32")


def test_a_prompt_with_a_hole_leaves_it_out() -> None:
    mask = np.array([[0, 1, 0, 1]], np.int64)
    first = op.first_positions(mask, 0)
    assert first.tolist() == [1]
    q, k = values((1, 4, 1, 4)), values((1, 1, 4, 4), seed=1)
    v = np.eye(4, dtype=np.float32)[None, None]
    y = op.attention(q, k, v, 4, 1.0, mask, first)[0, :, 0]
    assert (y[0] > 0).all()  # nothing is left for the first query: it attends to everything
    np.testing.assert_array_equal(y[1:] > 0, [[False, True, False, False], [False, True, False, False], [False, True, False, True]])


def launch_of(case: Case, dtype: str = "float32") -> op.Launch:
    q, cache = (
        at(4096, (case.rows, case.tokens, case.heads, case.head_dim), dtype),
        (case.rows, case.kv_heads, case.capacity, case.head_dim),
    )
    mask, first = (at(8192, (case.rows, case.tokens), "int64"), at(4096, (case.rows,), "int64")) if case.prompts else (None, None)
    return op.launch(q, at(0, cache, dtype), at(0, cache, dtype), q, case.length, case.scale, mask, first)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_grid_covers_every_query(case: Case, dtype: str) -> None:
    launch = launch_of(case, dtype)
    assert case.tokens <= 32 * launch.grid[0] < case.tokens + 32
    assert launch.grid[1:] == (case.heads, case.rows)
    assert launch.kernel in op.KERNELS
    assert launch.shared <= 48 * 1024


def test_wrong_tensors_are_named() -> None:
    q, cache = at(0, (2, 4, 4, 64)), at(0, (2, 4, 9, 64))
    with pytest.raises(InputError, match="length is 10; expected 4 to 9"):
        op.launch(q, cache, cache, q, 10, 1.0)
    with pytest.raises(InputError, match="mask and first go together"):
        op.launch(q, cache, cache, q, 9, 1.0, mask=at(0, (2, 4), "int64"))
    with pytest.raises(InputError, match="head size of at most 160"):
        op.launch(at(0, (2, 4, 4, 192)), at(0, (2, 4, 9, 192)), at(0, (2, 4, 9, 192)), at(0, (2, 4, 4, 192)), 9, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("case", sanitized(CASES, 0, 1, 2, 3, 4))
@pytest.mark.parametrize("dtype", FLOATS)
def test_kernel(gpu: Gpu, case: Case, dtype: str) -> None:
    q, k, v = case.tensors(dtype)
    mask, first = case.mask()
    y = gpu.empty(q.shape, dtype)
    limits = [None if x is None else gpu.put(x) for x in (mask, first)]
    gpu.run(op.launch(*(gpu.put(x, dtype) for x in (q, k, v)), y, case.length, case.scale, *limits))
    assert_output(gpu.get(y), op.attention(q, k, v, case.length, case.scale, mask, first), dtype)
