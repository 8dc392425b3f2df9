"""`rope_cache`: the truth against the reference and the runtime's tables, the launches, the kernel against the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, assert_output, at, represented, sanitized, values
from tolerances import assert_close

from hart_edge.export.reference.embeddings import apply_rotary, image_angles, text_angles
from hart_edge.plugins import rope_cache as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.rotary import image_tables, text_tables


@dataclass(frozen=True)
class Case:
    """rows, heads, head_dim; side 0: text of `text` tokens; l2_norm: heads are normalised."""

    rows: int
    heads: int
    head_dim: int
    side: int
    grid: int
    capacity: int
    start: int
    text: int = 0
    l2_norm: bool = False

    @property
    def tokens(self) -> int:
        return self.side**2 or self.text

    def positions(self) -> np.ndarray:
        shape = (self.rows,) if self.side else (self.rows, self.text)
        return np.random.default_rng(9).integers(0, 300, shape)

    def tensors(self, dtype: str) -> list[np.ndarray]:
        """qkv, q_bias, v_bias, frequency, positions, k_cache, v_cache."""
        width, cache = self.heads * self.head_dim, (self.rows, self.heads, self.capacity, self.head_dim)
        qkv = values((self.rows * self.tokens, 3 * width), dtype)
        biases = [values((width,), dtype, seed) for seed in (1, 2)]
        caches = [values(cache, dtype, seed) for seed in (3, 4)]
        return [qkv, *biases, op.frequencies(self.head_dim, self.side > 0), self.positions(), *caches]

    def gain(self, dtype: str) -> np.ndarray | None:
        return represented(np.linspace(0.5, 9, self.heads), dtype) if self.l2_norm else None

    def truth(self, tensors: list[np.ndarray], dtype: str) -> tuple[np.ndarray, ...]:
        return op.rope_cache(*tensors, self.start, self.side, self.grid, self.gain(dtype))


CASES = [
    Case(2, 3, 20, 0, 0, 111, 7, text=19),
    Case(1, 5, 64, 0, 0, 19, 0, text=19),
    Case(2, 3, 12, 3, 7, 111, 19),
    Case(3, 2, 64, 5, 64, 40, 15),
    Case(2, 1, 128, 9, 16, 989, 111),
    Case(2, 24, 64, 1, 64, 301, 300),
    Case(2, 3, 20, 0, 0, 111, 7, text=19, l2_norm=True),
    Case(1, 9, 64, 3, 7, 19, 5, l2_norm=True),
    Case(2, 3, 160, 5, 16, 40, 15, l2_norm=True),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_truth_is_the_reference(case: Case, dtype: str) -> None:
    tensors = case.tensors(dtype)
    qkv, q_bias, v_bias, _, positions, k_cache, v_cache = (torch.from_numpy(t) for t in tensors)
    bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
    packed = (qkv.float() + bias.float()).view(case.rows, case.tokens, 3, case.heads, case.head_dim)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    gain = case.gain(dtype)
    if gain is not None:
        q, k = F.normalize(q, dim=-1) * torch.from_numpy(gain).float()[:, None, None], F.normalize(k, dim=-1)
    angles = image_angles(case.side, case.grid, positions, case.head_dim) if case.side else text_angles(positions, case.head_dim)
    q, k = (apply_rotary(x, *angles).to(qkv.dtype) for x in (q, k))
    after = slice(case.start, case.start + case.tokens)
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    k_cache[:, :, after], v_cache[:, :, after] = k, v.to(qkv.dtype)
    entry = "rotated" if dtype == "float32" else dtype
    for actual, expected in zip(case.truth(tensors, dtype), (q.transpose(1, 2), k_cache, v_cache), strict=True):
        assert_close(actual, expected, entry)


def test_a_head_of_zeros_stays_zero_when_normalised() -> None:
    case = CASES[-1]
    qkv, q_bias, *rest = case.tensors("float32")
    q, k_cache, _ = case.truth([np.zeros_like(qkv), np.zeros_like(q_bias), *rest], "float32")
    assert not q.any()
    assert not k_cache[:, :, case.start : case.start + case.tokens].any()


@pytest.mark.parametrize("case", [case for case in CASES if not case.l2_norm])
def test_truth_is_what_the_runtime_tables_give(case: Case) -> None:
    tensors = case.tensors("float32")
    tables = (
        image_tables(case.side, case.grid, case.positions(), case.head_dim) if case.side else text_tables(case.positions(), case.head_dim)
    )
    cos, sin = (t.transpose(0, 2, 1, 3) for t in tables)
    q = tensors[0].reshape(case.rows, case.tokens, 3, case.heads, case.head_dim)[:, :, 0] + tensors[1].reshape(case.heads, -1)
    expected = q * cos + np.roll(q, case.head_dim // 2, axis=-1) * sin
    assert_close(case.truth(tensors, "float32")[0], expected, "float32")


def buffers(case: Case, dtype: str = "float16", **changes: object) -> dict:
    """Arguments of `launch`, with some replaced."""
    width, cache = case.heads * case.head_dim, (case.rows, case.heads, case.capacity, case.head_dim)
    shapes = {"qkv": (case.rows * case.tokens, 3 * width), "q_bias": (width,), "v_bias": (width,), "k_cache": cache, "v_cache": cache}
    given = {name: at(4096, shape, dtype) for name, shape in shapes.items()}
    given["q"] = at(4096, (case.rows, case.tokens, case.heads, case.head_dim), dtype)
    given["frequency"] = at(4096, op.frequencies(case.head_dim, case.side > 0).shape)
    given["positions"] = at(4096, case.positions().shape, "int64")
    gain = at(4096, (case.heads,), dtype) if case.l2_norm else None
    return given | {"start": case.start, "side": case.side, "grid": case.grid, "gain": gain} | changes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_block_per_token(case: Case, dtype: str) -> None:
    launch = op.launch(**buffers(case, dtype))
    assert launch.grid == (case.rows * case.tokens, 1, 1)
    assert launch.shared == 4 * 2 * case.head_dim
    assert math.prod(launch.block) % 32 == 0
    assert launch.kernel.expression.endswith(f", {str(case.l2_norm).lower()}>")
    assert (launch.arguments[5].value != 0) == case.l2_norm
    assert launch.kernel in op.KERNELS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 16}, "25 tokens do not fit a cache of 40 positions"),
        ({"start": -1}, "start is -1"),
        ({"side": 4}, "side is 4; 25 tokens"),
        ({"grid": 4}, "grid is 4"),
        ({"positions": at(0, (3, 25), "int64")}, r"positions is int64 \[3, 25\]"),
        ({"frequency": at(0, (32,))}, r"frequency is float32 \[32\]; expected float32 \[16\]"),
        ({"k_cache": at(0, (2, 2, 40, 64), "float16")}, "expected 3 rows or more"),
        ({"v_bias": at(0, (128,))}, "v_bias is float32"),
        ({"gain": at(0, (3,), "float16")}, r"gain is float16 \[3\]; expected float16 \[2\]"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        op.launch(**buffers(CASES[3], **changes))


@pytest.mark.gpu
@pytest.mark.parametrize("case", sanitized(CASES, 1, 2, 7))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel(gpu: Gpu, case: Case, dtype: str, misalign: bool) -> None:
    tensors = case.tensors(dtype)
    expected, gain = case.truth(tensors, dtype), case.gain(dtype)
    dtypes = (dtype, dtype, dtype, "float32", "int64", dtype, dtype)
    on_gpu = [gpu.put(t, d, misalign and i == 0) for i, (t, d) in enumerate(zip(tensors, dtypes, strict=True))]
    q = gpu.empty((case.rows, case.tokens, case.heads, case.head_dim), dtype)
    gpu.run(op.launch(*on_gpu[:5], q, *on_gpu[5:], case.start, case.side, case.grid, None if gain is None else gpu.put(gain, dtype)))
    for actual, truth in zip((q, *on_gpu[5:]), expected, strict=True):
        assert_output(gpu.get(actual), truth, dtype)


@pytest.mark.gpu
def test_rows_beyond_the_run_keep_their_cache(gpu: Gpu) -> None:
    case = CASES[3]
    tensors = case.tensors("float16")
    larger = [np.concatenate([cache, cache]) for cache in tensors[5:]]
    caches, q = [gpu.put(cache) for cache in larger], gpu.empty((case.rows, case.tokens, case.heads, case.head_dim), "float16")
    gpu.run(op.launch(*map(gpu.put, tensors[:5]), q, *caches, case.start, case.side, case.grid))
    for cache, before in zip(caches, larger, strict=True):
        np.testing.assert_array_equal(gpu.get(cache)[case.rows :], before[case.rows :])
