"""`next_scale`: the truth against the reference, the launches, the kernels against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, assert_output, at, sanitized, values
from tolerances import assert_close

from hart_edge.export.reference.quantizer import PhiSet
from hart_edge.plugins import next_scale as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Case:
    batch: int
    source: int  # side p of h
    grid: int
    side: int  # of the next scale
    channels: int
    width: int
    ratio: float = 0.5

    def tensors(self) -> tuple[np.ndarray, ...]:
        """h, f_hat, φ weight as torch has it, φ bias, word weight, word bias, level."""
        z, c = self.channels, self.width
        shapes = [(self.batch, self.source**2, z), (self.batch, self.grid**2, z), (z, z, 3, 3), (z,), (z, c), (c,), (c,)]
        return tuple(values(shape, seed=i, scale=z**-0.5 if 2 <= i <= 4 else 1) for i, shape in enumerate(shapes))

    def truth(self, tensors: tuple[np.ndarray, ...], dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        h, f_hat, phi, phi_bias, word, word_bias, level = tensors
        return op.next_scale(h, f_hat, (op.pack_phi(phi), phi_bias), self.ratio, (word, word_bias), level, self.side, dtype)


CASES = [
    Case(2, 1, 7, 2, 5, 19),
    Case(1, 5, 16, 9, 32, 300),
    Case(2, 9, 64, 12, 32, 1536),
    Case(1, 48, 64, 64, 32, 111, ratio=0.37),
    Case(1, 3, 13, 11, 33, 257),
    Case(1, 7, 7, 7, 3, 5),
    Case(1, 2, 19, 3, 70, 64, ratio=1.0),
]


def image(x: np.ndarray, side: int) -> torch.Tensor:
    """Channels last [B, side², Z] → [B, Z, side, side] float64."""
    return torch.from_numpy(x).double().transpose(1, 2).reshape(x.shape[0], -1, side, side)


@pytest.mark.parametrize("case", CASES)
def test_truth_is_the_reference(case: Case) -> None:
    tensors = case.tensors()
    h, f_hat, phi, phi_bias, word, word_bias, level = tensors
    convolutions = PhiSet(case.channels, 1, case.ratio).double()
    convolutions.qresi_ls[0].weight.data = torch.from_numpy(phi).double()
    convolutions.qresi_ls[0].bias.data = torch.from_numpy(phi_bias).double()
    up = F.interpolate(image(h, case.source), size=(case.grid, case.grid), mode="bicubic")
    total = image(f_hat, case.grid) + convolutions(up, 0, 2).detach()
    pooled = F.interpolate(total, size=(case.side, case.side), mode="area").flatten(2).transpose(1, 2)
    x = pooled.numpy() @ word + word_bias + level
    next_f_hat, next_x = case.truth(tensors)
    assert_close(next_f_hat, total.flatten(2).transpose(1, 2), "kernel float32")
    assert_close(next_x, np.concatenate([x, x]), "kernel float32")


def buffers(case: Case, dtype: str = "float16", **changes: object) -> dict:
    z, c = case.channels, case.width
    given = {
        "h": at(0, (case.batch, case.source**2, z)),
        "f_hat": at(0, (case.batch, case.grid**2, z)),
        "phi": (at(0, (3, 3, z, z)), at(0, (z,))),
        "ratio": case.ratio,
        "word": (at(0, (z, c)), at(0, (c,))),
        "level": at(0, (c,)),
        "x": at(0, (2 * case.batch, case.side**2, c), dtype),
    }
    return given | changes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_grids_cover_every_cell_channel_and_column(case: Case, dtype: str) -> None:
    up, pool = op.launches(**buffers(case, dtype))
    across, down = -(-case.grid // 8), -(-case.grid // 4)
    assert up.grid == (across * down, -(-case.channels // 32), case.batch)
    per_block = 8 if case.side >= 8 else 1
    assert pool.kernel.expression.endswith(f", {per_block}>")
    assert pool.grid == (-(-(case.side**2) // per_block), -(-case.width // 256), case.batch)
    assert {up.kernel, pool.kernel} <= set(op.KERNELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"h": at(0, (1, 24, 32))}, "h has 24 cells"),
        ({"f_hat": at(0, (1, 256, 31))}, r"f_hat is float32 \[1, 256, 31\]"),
        ({"x": at(0, (1, 81, 300))}, r"x is float32 \[1, 81, 300\]; expected .*\[2, 81, 300\]"),
        ({"x": at(0, (2, 17**2, 300))}, "sides 5 and 17"),
        ({"phi": (at(0, (32, 32, 3, 3)), at(0, (32,)))}, r"phi weight is float32 \[32, 32, 3, 3\]"),
        ({"ratio": 1.5}, "ratio is 1.5"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        op.launches(**buffers(CASES[1], **changes))


@pytest.mark.gpu
@pytest.mark.parametrize("case", sanitized(CASES, 0, 4))
@pytest.mark.parametrize("dtype", FLOATS)
def test_kernels(gpu: Gpu, case: Case, dtype: str) -> None:
    tensors = case.tensors()
    expected_f_hat, expected_x = case.truth(tensors, "float16" if dtype == "float16" else "float32")
    h, f_hat, phi, phi_bias, word, word_bias, level = tensors
    f, x = gpu.put(f_hat), gpu.empty((2 * case.batch, case.side**2, case.width), dtype)
    weights = (gpu.put(op.pack_phi(phi)), gpu.put(phi_bias)), case.ratio, (gpu.put(word), gpu.put(word_bias)), gpu.put(level)
    gpu.run(*op.launches(gpu.put(h), f, *weights, x))
    assert_output(gpu.get(f), expected_f_hat, "float32", "next scale")
    assert_output(gpu.get(x), expected_x, dtype, "next scale" if dtype == "float32" else "")
