"""`rope_tables`: the truth against the text encoder's own formula, the launches, the kernel against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from devices import Gpu, assert_output, at, values
from tolerances import assert_close

from hart_edge.export.modules.layers import swap_halves
from hart_edge.plugins import rope_tables as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Case:
    rows: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    start: int
    capacity: int
    own_tables: bool = False  # every row its own, or one for all
    gain: bool = False

    def tensors(self, dtype: str = "float32") -> tuple[Array, Array, Array, Array | None]:
        """qkv, cos, sin, gain."""
        table = (self.rows if self.own_tables else 1, self.tokens, self.head_dim)
        qkv = values((self.rows * self.tokens, (self.heads + 2 * self.kv_heads) * self.head_dim), dtype)
        return qkv, values(table, dtype, 1), values(table, dtype, 2), values((self.heads,), dtype, 3) if self.gain else None

    @property
    def cache(self) -> tuple[int, int, int, int]:
        return self.rows, self.kv_heads, self.capacity, self.head_dim


CASES = [
    Case(1, 1, 1, 1, 2, 0, 1),
    Case(2, 19, 6, 2, 64, 11, 33),
    Case(3, 5, 3, 3, 20, 7, 12, own_tables=True),
    Case(2, 7, 12, 2, 128, 0, 9),
    Case(2, 9, 4, 4, 64, 3, 12, own_tables=True, gain=True),
    Case(1, 3, 5, 1, 20, 2, 6, gain=True),
    Case(1, 2, 3, 3, 160, 0, 2, gain=True),
    Case(1, 2, 24, 24, 64, 1, 3),
]


@pytest.mark.parametrize("case", CASES)
def test_truth_rotates_as_the_engines_graphs_do(case: Case) -> None:
    qkv, cos, sin, gain = case.tensors()
    nothing = np.zeros(case.cache, np.float32)
    q, k, v = op.rope_tables(qkv, cos, sin, nothing, nothing, case.start, case.heads, gain)
    heads = torch.from_numpy(qkv).view(case.rows, case.tokens, -1, case.head_dim).transpose(1, 2)
    want = list(heads.split([case.heads, case.kv_heads, case.kv_heads], dim=1))
    if gain is not None:
        want[0] = torch.nn.functional.normalize(want[0], dim=-1) * torch.from_numpy(gain)[:, None, None]
        want[1] = torch.nn.functional.normalize(want[1], dim=-1)
    c, s = (torch.from_numpy(table)[:, None] for table in (cos, sin))
    rotated = [x * c + swap_halves(x) * s for x in (y.contiguous() for y in want[:2])]
    written = slice(case.start, case.start + case.tokens)
    assert_close(q, rotated[0].transpose(1, 2), "kernel float32")
    assert_close(k[:, :, written], rotated[1], "kernel float32")
    np.testing.assert_array_equal(v[:, :, written], want[2])
    assert not np.delete(k, np.s_[written], axis=2).any()


@pytest.mark.parametrize(
    ("head_dim", "dtype", "expected"), [(64, "float16", (4, 96)), (20, "float32", (16, 256)), (160, "float16", (16, 256))]
)
def test_a_row_of_lanes_per_head(head_dim: int, dtype: str, expected: tuple[int, int]) -> None:
    """Lanes a head, a power of two, and threads of a block for 24 heads and as many of k and v."""
    q, cache, qkv = at(0, (1, 4, 24, head_dim), dtype), at(0, (1, 24, 9, head_dim), dtype), at(0, (4, 72 * head_dim), dtype)
    launch = op.launch(qkv, at(0, (1, 4, head_dim), dtype), at(0, (1, 4, head_dim), dtype), q, cache, cache, 0)
    across, down, _ = launch.block
    assert launch.kernel in op.KERNELS
    assert across * down % 32 == 0
    assert (across, across * down) == expected


def test_wrong_tensors_are_named() -> None:
    q, cache, qkv, table = at(0, (2, 4, 4, 8)), at(0, (2, 2, 9, 8)), at(0, (8, 64)), at(0, (1, 4, 8))
    assert op.launch(qkv, table, table, q, cache, cache, 5).grid == (8, 1, 1)
    with pytest.raises(InputError, match="start is 6; 4 tokens do not fit a cache of 9"):
        op.launch(qkv, table, table, q, cache, cache, 6)
    with pytest.raises(InputError, match="2 rows need 1 or 2"):
        op.launch(qkv, at(0, (3, 4, 8)), at(0, (3, 4, 8)), q, cache, cache, 0)
    with pytest.raises(InputError, match="gain is"):
        op.launch(qkv, table, table, q, cache, cache, 0, at(0, (3,)))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_kernel(gpu: Gpu, case: Case, dtype: str) -> None:
    qkv, cos, sin, gain = case.tensors(dtype)
    old = values(case.cache, dtype, 4)
    want = op.rope_tables(qkv, cos, sin, old, old, case.start, case.heads, gain)
    caches, q = [gpu.put(old, dtype) for _ in "kv"], gpu.empty((case.rows, case.tokens, case.heads, case.head_dim), dtype)
    tables = [gpu.put(table, dtype) for table in (cos, sin)]
    gpu.run(op.launch(gpu.put(qkv, dtype), *tables, q, *caches, case.start, None if gain is None else gpu.put(gain, dtype)))
    for buffer, value in zip((q, *caches), want, strict=True):
        assert_output(gpu.get(buffer), value, dtype)
