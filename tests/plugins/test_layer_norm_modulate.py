"""`layer_norm_modulate` and `gate_residual`: together the reference's block, then each kernel against its truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import Gpu, assert_output, at, native, represented, sanitized, values
from tolerances import assert_close
from torch import nn

from hart_edge.export.reference.diffusion import FinalLayer, ResBlock
from hart_edge.plugins import gate_residual, layer_norm_modulate
from hart_edge.plugins.kernel import FLOATS, FP8, ITEM_BYTES
from hart_edge.plugins.quantize import e4m3_codes
from hart_edge.runtime.errors import InputError

SIZES = [(1, 19), (19, 111), (3, 989), (6, 1024)]
EPS = 1e-6
SHIFT, SCALE, GATE = range(3)


def tensors(size: tuple[int, int], parts: int, dtype: str) -> tuple[np.ndarray, ...]:
    """x with a mean of its own, modulation, weight, bias."""
    rows, width = size
    return (
        represented(3 + values(size), dtype),
        values((rows, parts * width), dtype, 1),
        values((width,), dtype, 2),
        values((width,), dtype, 3),
    )


@pytest.mark.parametrize("size", SIZES)
def test_truths_make_the_block_of_the_reference(size: tuple[int, int]) -> None:
    x, modulation, weight, bias = tensors(size, 3, "float32")
    block = ResBlock(size[1])
    block.in_ln.weight.data, block.in_ln.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    block.mlp, block.adaLN_modulation = nn.Identity(), nn.Identity()
    expected = block(torch.from_numpy(x), torch.from_numpy(modulation)).detach()
    y = layer_norm_modulate.layer_norm_modulate(x, modulation, SHIFT, SCALE, EPS, (weight, bias))
    assert_close(gate_residual.gate_residual(x, modulation, GATE, y), expected, "kernel float32")


@pytest.mark.parametrize("size", SIZES)
def test_truth_without_affine_is_the_final_layer_of_the_reference(size: tuple[int, int]) -> None:
    x, modulation, *_ = tensors(size, 2, "float32")
    layer = FinalLayer(size[1], 1)
    layer.linear, layer.adaLN_modulation = nn.Identity(), nn.Identity()
    expected = layer(torch.from_numpy(x), torch.from_numpy(modulation))
    assert_close(layer_norm_modulate.layer_norm_modulate(x, modulation, SHIFT, SCALE, EPS), expected, "kernel float32")


def test_quantised_truth_is_that_of_the_rounded_value() -> None:
    x, modulation, weight, bias = tensors((19, 111), 3, "float16")
    how = (x, modulation, SHIFT, SCALE, EPS, (weight, bias))
    y = layer_norm_modulate.layer_norm_modulate(*how).astype(np.float32)
    np.testing.assert_array_equal(layer_norm_modulate.layer_norm_modulate(*how, 0.02, FP8), e4m3_codes(y * np.float32(50)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_launches_find_the_parts_of_the_modulation(size: tuple[int, int], dtype: str) -> None:
    rows, width = size
    x, modulation = at(4096, size, dtype), at(8192, (rows, 3 * width), dtype)
    norm = layer_norm_modulate.launch(x, modulation, x, SHIFT, SCALE, EPS)
    gate = gate_residual.launch(x, modulation, GATE, x, x)
    part = width * ITEM_BYTES[dtype]
    assert (norm.arguments[4].value, norm.arguments[3].value) == (8192, 8192 + part)
    assert gate.arguments[1].value == 8192 + 2 * part
    assert norm.arguments[7] == gate.arguments[5] == 3 * width
    assert norm.grid == (rows, 1, 1)
    lanes = 16 // ITEM_BYTES[dtype] if width % (16 // ITEM_BYTES[dtype]) == 0 else 1
    assert gate.grid[0] == rows
    assert gate.grid[1] * gate.block[0] * lanes >= width
    assert norm.kernel in layer_norm_modulate.KERNELS
    assert gate.kernel in gate_residual.KERNELS


def test_wrong_tensors_are_named() -> None:
    x = at(0, (3, 64))
    with pytest.raises(InputError, match="must be a multiple of 64"):
        layer_norm_modulate.launch(x, at(0, (3, 100)), x, SHIFT, SCALE, EPS)
    with pytest.raises(InputError, match="part 2 of modulation"):
        gate_residual.launch(x, at(0, (3, 128)), GATE, x, x)
    with pytest.raises(InputError, match=r"modulation is float32 \[2, 192\]; expected float32 \[3, 192\]"):
        gate_residual.launch(x, at(0, (2, 192)), GATE, x, x)
    with pytest.raises(InputError, match="bias is float16"):
        layer_norm_modulate.launch(x, at(0, (3, 192)), x, SHIFT, SCALE, EPS, (at(0, (64,)), at(0, (64,), "float16")))
    with pytest.raises(InputError, match="scale is None"):
        layer_norm_modulate.launch(x, at(0, (3, 192)), at(0, (3, 64), FP8), SHIFT, SCALE, EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 2, 3))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("misalign", [True, False])
def test_norm_kernel(gpu: Gpu, size: tuple[int, int], dtype: str, affine: bool, misalign: bool) -> None:
    x, modulation, weight, bias = tensors(size, 3, dtype)
    expected = layer_norm_modulate.layer_norm_modulate(x, modulation, SHIFT, SCALE, EPS, (weight, bias) if affine else None)
    y = gpu.empty(size, dtype)
    pair = (gpu.put(weight, dtype), gpu.put(bias, dtype)) if affine else None
    gpu.run(layer_norm_modulate.launch(gpu.put(x, dtype, misalign), gpu.put(modulation, dtype), y, SHIFT, SCALE, EPS, pair))
    assert_output(gpu.get(y), expected, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 2, 3))
@pytest.mark.parametrize("dtype", FLOATS)
def test_norm_kernel_to_fp8(gpu: Gpu, size: tuple[int, int], dtype: str) -> None:
    if not gpu.needs(FP8):
        pytest.skip(f"{gpu.device.info.name} has no FP8")
    x, modulation, weight, bias = (native(array, dtype) for array in tensors(size, 3, dtype))
    expected = layer_norm_modulate.layer_norm_modulate(x, modulation, SHIFT, SCALE, EPS, (weight, bias), 0.02, FP8)
    y, pair = gpu.empty(size, FP8), (gpu.put(weight, dtype), gpu.put(bias, dtype))
    gpu.run(layer_norm_modulate.launch(gpu.put(x, dtype), gpu.put(modulation, dtype), y, SHIFT, SCALE, EPS, pair, 0.02))
    assert_output(gpu.get(y), expected, FP8)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 2, 3))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("misalign", [True, False])
def test_gate_kernel_in_place(gpu: Gpu, size: tuple[int, int], dtype: str, misalign: bool) -> None:
    h, modulation, *_ = tensors(size, 3, dtype)
    y = values(size, dtype, 5)
    on_gpu = gpu.put(h, dtype, misalign)
    gpu.run(gate_residual.launch(on_gpu, gpu.put(modulation, dtype), GATE, gpu.put(y, dtype), on_gpu))
    assert_output(gpu.get(on_gpu), gate_residual.gate_residual(h, modulation, GATE, y), dtype)
