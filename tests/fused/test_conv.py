"""Convolutions against torch, with and without bias and residual taken along; on the emulated GPU and on a real one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from components import allocated, put
from emulator import emulated
from tolerances import RELATIVE_NORM, relative_error

from hart_edge.plugins.join_phases import join_phases
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import EngineError, InputError
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.conv import Convolution, Convolutions, ConvShape, channels_last, phase_bias, phase_kernels
from hart_edge.runtime.fused.workspace import Memory

SIZES = [(1, 16, 16, 32, 96, 3), (2, 19, 11, 96, 288, 1), (1, 13, 7, 32, 3, 3), (2, 5, 9, 64, 32, 1), (1, 64, 48, 160, 160, 3)]
"""Batch, height, width, channels in and out, side of the kernel."""
EVEN = [(2, 7, 9, 32, 128, 2), (1, 16, 16, 96, 384, 2)]
"""Kernels of phases."""


def arrays(shape: ConvShape) -> list[Array]:
    """x, weight, bias, residual in the layouts of `ConvShape`; sums stay near 1."""
    r = np.random.default_rng([shape.height, shape.inner])
    scale = (shape.inner * shape.side**2) ** -0.5
    parts = [
        r.standard_normal(shape.x),
        scale * r.standard_normal(shape.weight),
        r.standard_normal(shape.outer),
        r.standard_normal(shape.y),
    ]
    return [part.astype(shape.dtype) for part in parts]


def expected(shape: ConvShape, x: Array, weight: Array, bias: Array, residual: Array) -> Array:
    image, kernel = (torch.from_numpy(a.astype(np.float64)).permute(0, 3, 1, 2) for a in (x, weight))
    y = F.conv2d(image, kernel, torch.from_numpy(bias.astype(np.float64)), padding=shape.side // 2).permute(0, 2, 3, 1).numpy()
    return y + residual if shape.add else y


def computed(context: FusedContext, shape: ConvShape, operands: list[Array]) -> tuple[Array, Convolution]:
    def ask(memory: Memory) -> list:
        shapes = (shape.x, shape.weight, (shape.outer,), shape.y, shape.y)
        return [memory.buffer(name, s, shape.dtype) for name, s in zip(("x", "weight", "bias", "residual", "y"), shapes, strict=True)]

    with allocated(context, ask) as (x, weight, bias, residual, y):
        for buffer, array in zip((x, weight, bias, residual), operands, strict=True):
            put(context, buffer, array)
        convolution = Convolutions(context).plan(shape)
        convolution.run(x, weight, bias, y, residual if shape.add else None)
        return context.download(y), convolution


@pytest.mark.parametrize("size", [*SIZES, *EVEN])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("add", [False, True])
def test_convolution(context: FusedContext, size: tuple[int, ...], dtype: str, add: bool) -> None:
    shape = ConvShape(*size, dtype=dtype, add=add)
    operands = arrays(shape)
    y, _ = computed(context, shape, operands)
    assert relative_error(y, expected(shape, *operands)) < RELATIVE_NORM[f"one layer {dtype}"]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (1, 64, 64, 640, 640, 3), (1, 1024, 1024, 160, 3, 3)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("add", [False, True])
def test_cudnn_takes_bias_and_residual_along(gpu_context: FusedContext, size: tuple[int, ...], dtype: str, add: bool) -> None:
    assert Convolution(gpu_context, ConvShape(*size, dtype=dtype, add=add)).refusal == ""


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("size", [*EVEN, (1, 512, 512, 160, 640, 2)])
def test_cudnn_takes_the_bias_of_phases_along(gpu_context: FusedContext, size: tuple[int, ...], dtype: str) -> None:
    assert Convolution(gpu_context, ConvShape(*size, dtype=dtype, add=False)).refusal == ""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_phases_are_a_convolution_of_the_enlarged_image(dtype: str) -> None:
    """In float64 but for the kernels, which are sums of weights rounded to their type."""
    r = np.random.default_rng(0)
    image, weight, bias = r.standard_normal((2, 5, 7, 6)), r.standard_normal((4, 6, 3, 3)).astype(dtype), r.standard_normal(4)
    large = torch.from_numpy(image.repeat(2, axis=1).repeat(2, axis=2)).permute(0, 3, 1, 2)
    wanted = F.conv2d(large, torch.from_numpy(weight.astype(np.float64)), torch.from_numpy(bias), padding=1).permute(0, 2, 3, 1)
    kernels = torch.from_numpy(phase_kernels(weight).astype(np.float64)).permute(0, 3, 1, 2)
    small = torch.from_numpy(image).permute(0, 3, 1, 2)
    phases = F.conv2d(small, kernels, torch.from_numpy(phase_bias(bias)), padding=1).permute(0, 2, 3, 1)
    assert relative_error(join_phases(phases.contiguous().numpy()), wanted) < RELATIVE_NORM[f"one layer {dtype}"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("add", [False, True])
def test_bias_and_residual_follow_where_cudnn_does_not_take_them(dtype: str, add: bool) -> None:
    shape = ConvShape(*SIZES[1], dtype=dtype, add=add)
    operands = arrays(shape)
    y, convolution = computed(emulated(fuses=False), shape, operands)
    assert not convolution.fused
    assert relative_error(y, expected(shape, *operands)) < RELATIVE_NORM[f"one layer {dtype}"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_kernel_behind_a_convolution(gpu_context: FusedContext, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above on the GPU: the path that a card without the fused engines takes."""
    build = Convolution._build

    def refuse(self: Convolution, fused: bool) -> object:
        if fused:
            raise EngineError("no engine.")
        return build(self, fused)

    monkeypatch.setattr(Convolution, "_build", refuse)
    shape = ConvShape(*SIZES[0], dtype=dtype, add=True)
    operands = arrays(shape)
    y, _ = computed(gpu_context, shape, operands)
    assert relative_error(y, expected(shape, *operands)) < RELATIVE_NORM[f"one layer {dtype}"]


def test_one_plan_per_shape() -> None:
    plans = Convolutions(emulated())
    shape = ConvShape(*SIZES[0], dtype="float16", add=False)
    assert plans.plan(shape) is plans.plan(ConvShape(*SIZES[0], dtype="float16", add=False))
    assert plans.plan(shape) is not plans.plan(ConvShape(*SIZES[0], dtype="float16", add=True))


def test_weights_are_laid_out_channels_last() -> None:
    weight = np.arange(2 * 3 * 1 * 5).reshape(2, 3, 1, 5)
    laid = channels_last(weight)
    assert laid[1, 0, 4, 2] == weight[1, 2, 0, 4]


def test_wrong_tensors_are_named() -> None:
    context = emulated()
    shape = ConvShape(*SIZES[0], dtype="float16", add=False)

    def ask(memory: Memory) -> tuple:
        sizes = (("x", shape.x), ("weight", shape.weight), ("bias", (shape.outer,)), ("y", shape.y))
        return tuple(memory.buffer(name, size, "float16") for name, size in sizes)

    with allocated(context, ask) as (x, weight, bias, y):
        convolution = Convolutions(context).plan(shape)
        with pytest.raises(InputError, match=r"convolution's x is float16 \[1, 16, 16, 96\]; expected float16 \[1, 16, 16, 32\]"):
            convolution.run(y, weight, bias, y)
        with pytest.raises(InputError, match="planned without a residual was given"):
            convolution.run(x, weight, bias, y, y)
