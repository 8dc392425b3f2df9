"""`swiglu`: the truth against the reference, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import Gpu, assert_output, at, native, sanitized, threads, values
from tolerances import assert_close

from hart_edge.plugins import swiglu as op
from hart_edge.plugins.kernel import FLOATS, ITEM_BYTES
from hart_edge.plugins.quantize import QUANTIZED
from hart_edge.runtime.errors import InputError

SIZES = [(1, 19), (19, 111), (3, 989), (3, 4096), (2, 8960)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_truth_is_silu_of_the_gate_times_up(size: tuple[int, int], dtype: str) -> None:
    gate, up = values(size, dtype, scale=4), values(size, dtype, 1)
    expected = F.silu(torch.from_numpy(gate).double()) * torch.from_numpy(up).double()
    assert_close(op.swiglu(gate, up), expected, dtype)
    np.testing.assert_array_equal(op.swiglu(np.concatenate([gate, up], axis=1)), op.swiglu(gate, up))


def test_truth_at_the_ends_of_the_range() -> None:
    gate = np.array([[-200, 200, 0]], np.float32)
    assert_close(op.swiglu(gate, np.ones_like(gate)), [[0, 200, 0]], "float32")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_grid_covers_every_element(size: tuple[int, int], dtype: str) -> None:
    rows, width = size
    launch = op.launch(at(4096, size, dtype), at(4096, size, dtype), at(4096, size, dtype))
    lanes = 16 // ITEM_BYTES[dtype] if width % (16 // ITEM_BYTES[dtype]) == 0 else 1
    assert launch.grid[0] == rows
    assert width <= launch.grid[1] * launch.block[0] * lanes < width + launch.block[0] * lanes
    assert launch.kernel in op.KERNELS
    assert threads(launch)[2] == 1


def test_packed_input_has_up_behind_the_gate() -> None:
    launch = op.launch(at(4096, (3, 128), "float16"), at(0, (3, 64), "float16"))
    gate, up, _, width, stride, _ = launch.arguments
    assert up.value - gate.value == 64 * 2
    assert (width, stride) == (64, 128)


def test_wrong_tensors_are_named() -> None:
    gate = at(0, (3, 64))
    with pytest.raises(InputError, match="even width"):
        op.launch(at(0, (3, 19)), gate)
    with pytest.raises(InputError, match=r"up is float32 \[3, 63\]"):
        op.launch(gate, gate, at(0, (3, 63)))
    with pytest.raises(InputError, match=r"y is float32 \[3, 64\]; expected .*\[3, 32\]"):
        op.launch(gate, gate)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 2, 3))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel(gpu: Gpu, size: tuple[int, int], dtype: str, packed: bool, misalign: bool) -> None:
    check(gpu, size, dtype, dtype, packed, misalign)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 2, 3))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out", QUANTIZED)
def test_quantised_kernel(gpu: Gpu, size: tuple[int, int], dtype: str, out: str) -> None:
    if not gpu.needs(out):
        pytest.skip(f"{gpu.device.info.name} has no FP8")
    check(gpu, size, dtype, out, True, False)


def check(gpu: Gpu, size: tuple[int, int], dtype: str, out: str, packed: bool, misalign: bool) -> None:
    gate, up = values(size, dtype, scale=4), values(size, dtype, 1)
    scale = 0.03 if out in QUANTIZED else None
    expected, y = op.swiglu(native(gate, dtype), native(up, dtype), scale, out), gpu.empty(size, out)
    first = gpu.put(np.concatenate([gate, up], axis=1) if packed else gate, dtype, misalign)
    gpu.run(op.launch(first, y, None if packed else gpu.put(up, dtype), scale))
    assert_output(gpu.get(y), expected, out)
