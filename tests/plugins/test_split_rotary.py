"""`split_rotary`: the truth against the exported module's arithmetic, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import Gpu, assert_output, at, native, sanitized, values
from tolerances import assert_close

from hart_edge.export.modules.layers import swap_halves
from hart_edge.plugins import split_rotary as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.runtime.errors import InputError

SIZES = [(1, 1, 1, 4), (2, 19, 3, 10), (2, 25, 24, 64), (4, 111, 5, 32)]  # rows, tokens, heads, head size


def tensors(size: tuple[int, int, int, int], dtype: str = "float32") -> list[np.ndarray]:
    rows, tokens, heads, head_dim = size
    shapes = (rows * tokens, 3 * heads * head_dim), (rows, 1, tokens, head_dim), (rows, 1, tokens, head_dim)
    return [values(shape, dtype, seed) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("size", SIZES)
def test_truth_is_the_module_s_arithmetic(size: tuple[int, int, int, int]) -> None:
    rows, tokens, heads, head_dim = size
    qkv, cos, sin = (torch.from_numpy(x) for x in tensors(size))
    q, k, v = qkv.view(rows, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    expected = [x * cos + swap_halves(x) * sin for x in (q, k)]
    for got, want in zip(op.split_rotary(*tensors(size), heads), [*expected, v], strict=True):
        assert_close(got, want, "float32")


def test_one_block_per_token_and_whole_accesses_where_they_fit() -> None:
    for size in SIZES:
        rows, tokens, heads, head_dim = size
        for dtype in FLOATS:
            part = at(4096, (rows, heads, tokens, head_dim), dtype)
            table = at(4096, (rows, 1, tokens, head_dim), dtype)
            launch = op.launch(at(4096, (rows * tokens, 3 * heads * head_dim), dtype), table, table, part, part, part)
            assert launch.grid == (rows * tokens, 1, 1) and launch.kernel in op.KERNELS
            lanes = 16 // ITEM_BYTES[dtype]
            assert launch.kernel == op.kernel(dtype, lanes if head_dim // 2 % lanes == 0 else 1)


def test_wrong_tensors_are_named() -> None:
    part, table = at(0, (2, 3, 5, 8)), at(0, (2, 1, 5, 8))
    with pytest.raises(InputError, match=r"qkv is float32 \[10, 71\]; expected float32 \[10, 72\]"):
        op.launch(at(0, (10, 71)), table, table, part, part, part)
    with pytest.raises(InputError, match=r"sin is float16"):
        op.launch(at(0, (10, 72)), table, at(0, (2, 1, 5, 8), "float16"), part, part, part)
    with pytest.raises(InputError, match="head size must be even"):
        odd = at(0, (2, 3, 5, 7))
        op.launch(at(0, (10, 63)), table, table, odd, odd, odd)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 1, 2))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel(gpu: Gpu, size: tuple[int, int, int, int], dtype: str, misalign: bool) -> None:
    rows, tokens, heads, head_dim = size
    given = tensors(size, dtype)
    expected = op.split_rotary(*(native(x, dtype) for x in given), heads)
    outputs = [gpu.empty((rows, heads, tokens, head_dim), dtype) for _ in range(3)]
    gpu.run(op.launch(*(gpu.put(x, dtype, misalign) for x in given), *outputs))
    for buffer, want in zip(outputs, expected, strict=True):
        assert_output(gpu.get(buffer), want, dtype)
