"""`flash_attention`: the launch, and on Hopper the kernel against the truth, with tiles that are cut and weights that grow."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
from devices import Gpu, at, sanitized, values
from tolerances import assert_close

from hart_edge.plugins import flash_attention as op
from hart_edge.plugins.kernel import sources
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Case:
    """growth: factor of the first key in memory, which is attended to last; the last one has 1, those between lie between."""

    rows: int
    tokens: int
    heads: int
    length: int
    capacity: int
    growth: float = 1.0
    scale: float = 0.03125

    def tensors(self) -> tuple[Array, Array, Array]:
        """q [R, L, H, 64] and caches with one row more; what lies beyond the valid positions is not a number."""
        q = values((self.rows, self.tokens, self.heads, 64), "float16", scale=3)
        cache = (self.rows + 1, self.heads, self.capacity, 64)
        k, v = values(cache, "float16", 1, scale=3), values(cache, "float16", 2)
        k[:, :, : self.length] *= np.linspace(self.growth, 1, self.length, dtype=np.float16)[:, None]
        for x in (k, v):
            x[:, :, self.length :] = np.nan
        return q, k, v


CASES = [
    Case(2, 100, 2, 300, 301),
    Case(1, 1, 1, 1, 1),
    Case(2, 192, 3, 128, 128),  # a block of queries and a tile of keys, exactly
    Case(1, 193, 2, 129, 200),  # and one more
    Case(2, 65, 2, 700, 711, growth=4),  # weights outgrow half
    Case(2, 65, 2, 700, 711, growth=90),  # and float
    Case(3, 400, 2, 1500, 1500, growth=-20),
]


def launch_of(case: Case) -> op.Launch:
    q, cache = at(4096, (case.rows, case.tokens, case.heads, 64), "float16"), (case.rows + 1, case.heads, case.capacity, 64)
    return op.launch(q, at(0, cache, "float16"), at(0, cache, "float16"), q, case.length, case.scale)


@pytest.mark.parametrize("case", CASES)
def test_grid_covers_every_query(case: Case) -> None:
    launch = launch_of(case)
    assert case.tokens <= 192 * launch.grid[0] < case.tokens + 192
    assert launch.grid[1:] == (case.heads, case.rows)
    assert launch.block == (512, 1, 1)
    assert launch.shared <= 227 * 1024  # what SM90 gives a block


def test_sizes_are_those_of_the_kernel() -> None:
    text = sources()["flash_tiles.cuh"]
    names = ("head", "groups", "rows", "keys", "stages", "group")
    sizes = {name: int(re.search(rf"flash_{name} = (\d+)[,;]", text)[1]) for name in names}  # type: ignore[index]
    head, groups, rows, keys, stages, group = sizes.values()
    case = Case(1, 1, 1, 1, 1)
    assert (head, groups * rows, (groups + 1) * group) == (op.HEAD_DIM, 192, launch_of(case).block[0])
    assert launch_of(case).shared == 2 * head * (groups * rows + 2 * stages * keys) + 4 * stages * 8 + 1024


def test_wrong_tensors_are_named() -> None:
    q, cache = at(0, (2, 4, 4, 64), "float16"), at(0, (2, 4, 9, 64), "float16")
    with pytest.raises(InputError, match="length is 10; expected 1 to 9"):
        op.launch(q, cache, cache, q, 10, 1.0)
    with pytest.raises(InputError, match="expected heads of 64"):
        op.launch(at(0, (2, 4, 4, 32), "float16"), cache, cache, q, 9, 1.0)
    with pytest.raises(InputError, match=r"float32 \[2, 4, 4, 64\]; expected float16"):
        op.launch(at(0, (2, 4, 4, 64)), cache, cache, q, 9, 1.0)
    with pytest.raises(InputError, match=r"scale is -1\.0; expected a positive number"):
        op.launch(q, cache, cache, q, 9, -1.0)
    with pytest.raises(InputError, match="no multiple of 16"):
        op.launch(q, cache, at(8, (2, 4, 9, 64), "float16"), q, 9, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("case", sanitized(CASES, *range(6)))
def test_kernel(gpu: Gpu, case: Case) -> None:
    if gpu.device.info.capability != op.ARCHITECTURE:
        pytest.skip(f"needs a GPU of SM{op.ARCHITECTURE} (H100 or H200)")
    q, k, v = case.tensors()
    y = gpu.empty(q.shape, "float16")
    gpu.run(op.launch(*map(gpu.put, (q, k, v)), y, case.length, case.scale))
    assert_close(gpu.get(y), op.flash_attention(q, k[: case.rows], v[: case.rows], case.length, case.scale), "float16")
