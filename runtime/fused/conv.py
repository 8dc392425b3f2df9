"""Convolutions of the decoder: cuDNN, channels last, stride 1, padded by k // 2, planned once per shape.

    y = conv(x, weight) + bias (+ residual)      x [B, H, W, I], weight [O, k, k, I], bias [O], y and residual [B, H', W', O]

An odd k keeps the size, an even one adds a row and a column. "Enlarge by two, then convolve with 3 × 3" is a convolution with
the 2 × 2 of `phase_kernels`, whose four groups of outputs `plugins/join_phases` puts in their places: 4 products per output
for 9, and the enlarged input is never written.

Sums are float32; float32 convolutions are true float32, never TF32. Where cuDNN has no engine that takes bias and residual
along (it depends on shape, type and card), it convolves only, and our `add_bias` follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hart_edge.plugins import add_bias
from hart_edge.plugins.kernel import Buffer, Launch

from ..engine import Array
from ..errors import EngineError, InputError
from .buffers import view
from .context import FusedContext
from .cudnn import CudnnGraph


@dataclass(frozen=True)
class ConvShape:
    """What a convolution is planned for: sizes, side k of its kernel, type, and whether a residual is added."""

    batch: int
    height: int
    width: int
    inner: int
    outer: int
    side: int
    dtype: str
    add: bool

    @property
    def x(self) -> tuple[int, int, int, int]:
        """[B, H, W, I]."""
        return self.batch, self.height, self.width, self.inner

    @property
    def y(self) -> tuple[int, int, int, int]:
        """[B, H', W', O]."""
        more = 1 - self.side % 2
        return self.batch, self.height + more, self.width + more, self.outer

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """[O, k, k, I]."""
        return self.outer, self.side, self.side, self.inner


class Convolutions:
    """Plans by shape: layers of one shape share one."""

    def __init__(self, context: FusedContext) -> None:
        self._context = context
        self._plans: dict[ConvShape, Convolution] = {}

    def plan(self, shape: ConvShape) -> Convolution:
        """The convolution of that shape, planned when it is first asked for; EngineError when cuDNN has none."""
        if shape not in self._plans:
            self._plans[shape] = Convolution(self._context, shape)
        return self._plans[shape]


class Convolution:
    """One planned convolution; `run` may be captured.

    Attributes:
        refusal: why cuDNN does not add bias and residual itself; "" when it does.
    """

    def __init__(self, context: FusedContext, shape: ConvShape) -> None:
        self.shape, self._context, self.refusal = shape, context, ""
        try:
            self._graph = self._build(fused=True)
        except EngineError as error:
            self.refusal = str(error)
            self._graph = self._build(fused=False)

    @property
    def fused(self) -> bool:
        """Whether cuDNN adds bias and residual itself."""
        return not self.refusal

    def run(self, x: Buffer, weight: Buffer, bias: Buffer, y: Buffer, residual: Buffer | None = None) -> None:
        """Compute on the context's stream; y is none of the inputs."""
        self._check(x, weight, bias, y, residual)
        addresses = {"x": x.address, "weight": weight.address, "y": y.address}
        if self.fused:
            addresses["bias"] = bias.address
            if residual is not None:
                addresses["residual"] = residual.address
        self._graph.run(**addresses)
        if not self.fused:
            self._context.launch(self._behind(bias, y, residual))

    def _behind(self, bias: Buffer, y: Buffer, residual: Buffer | None) -> Launch:
        """Bias and residual as a kernel of their own, in place."""
        batch, height, width, outer = self.shape.y
        rows = batch * height * width
        flat = view(y, rows, outer)
        return add_bias.launch(flat, bias, flat, None if residual is None else view(residual, rows, outer))

    def _build(self, fused: bool) -> CudnnGraph:
        cudnn = self._context.cudnn
        what = f"a convolution{'' if fused else ' alone'} of {self.shape}"
        return cudnn.build(what, self.shape, self.shape.dtype, describe(self.shape, cudnn.types(self.shape.dtype), fused))

    def _check(self, x: Buffer, weight: Buffer, bias: Buffer, y: Buffer, residual: Buffer | None) -> None:
        shape = self.shape
        if (residual is not None) != shape.add:
            raise InputError(f"a convolution planned {'with' if shape.add else 'without'} a residual was given {residual}.")
        expected = {"x": (x, shape.x), "weight": (weight, shape.weight), "bias": (bias, (shape.outer,)), "y": (y, shape.y)}
        if residual is not None:
            expected["residual"] = (residual, shape.y)
        for name, (buffer, sizes) in expected.items():
            if (buffer.shape, buffer.dtype) != (sizes, shape.dtype):
                raise InputError(f"a convolution's {name} is {buffer}; expected {shape.dtype} {list(sizes)}.")


def describe(shape: ConvShape, dtype: Any, fused: bool) -> Callable[[Any], Mapping[str, Any]]:
    """What `Cudnn.build` calls with an empty graph: adds the convolution, with bias and residual if `fused`."""

    def add(graph: Any) -> dict[str, Any]:
        tensors = {"x": _tensor(graph, "x", shape.x), "weight": _tensor(graph, "weight", shape.weight)}
        padding, once = [shape.side // 2] * 2, [1, 1]
        y = graph.conv_fprop(image=tensors["x"], weight=tensors["weight"], padding=padding, stride=once, dilation=once)
        if fused and shape.add:  # before the bias: for that order cuDNN has engines ready, for the other it compiles one
            tensors["residual"] = _tensor(graph, "residual", shape.y)
            y = graph.add(a=y, b=tensors["residual"])
        if fused:
            tensors["bias"] = _tensor(graph, "bias", (1, 1, 1, shape.outer))
            y = graph.add(a=y, b=tensors["bias"])
        dim, stride = geometry(shape.y)
        tensors["y"] = y.set_output(True).set_data_type(dtype).set_dim(dim).set_stride(stride)
        return tensors

    return add


def geometry(shape: tuple[int, int, int, int]) -> tuple[list[int], list[int]]:
    """A contiguous channels-last array [N, H, W, C] as cuDNN wants it: sizes in the order N, C, H, W, and their strides."""
    n, h, w, c = shape
    return [n, c, h, w], [h * w * c, 1, w * c, c]


def channels_last(weight: Array) -> Array:
    """[O, I, k, k], as the bundle stores it → [O, k, k, I], a view."""
    return weight.transpose(0, 2, 3, 1)


def phase_kernels(weight: Array) -> Array:
    """Kernels of the phases of a doubled image, [O, I, 3, 3] → [4·O, 2, 2, I]; phase 2p + q makes rows 2r + p, columns 2c + q.

    Of the three rows of an enlarged image that row 2r + p sees, two are the same row of the small one: p = 0 sees r − 1 once
    and r twice, p = 1 sees r twice and r + 1 once; columns likewise. Their weights are added in float32 and rounded once.
    """
    taps = channels_last(weight).astype(np.float32)  # [O, 3, 3, I]
    kernels = np.empty(phase_shape(weight), weight.dtype).reshape(2, 2, -1, 2, 2, taps.shape[3])
    for p, rows in enumerate(_SEEN):
        for a, row in enumerate(rows):
            summed = taps[:, row].sum(axis=1)  # [O, 3, I]
            for q, columns in enumerate(_SEEN):
                for b, column in enumerate(columns):
                    kernels[p, q, :, a, b] = summed[:, column].sum(axis=1)
    return kernels.reshape(phase_shape(weight))


_SEEN = ((slice(0, 1), slice(1, 3)), (slice(0, 2), slice(2, 3)))
"""Taps of a 3 × 3 kernel that fall on the first and on the second cell that phases 0 and 1 see, along one axis."""


def phase_shape(weight: Array) -> tuple[int, ...]:
    """Of what `phase_kernels` makes."""
    return 4 * weight.shape[0], 2, 2, weight.shape[1]


def phase_bias(bias: Array) -> Array:
    """[O] → [4·O]."""
    return np.tile(bias, 4)


def _tensor(graph: Any, name: str, shape: tuple[int, int, int, int]) -> Any:
    dim, stride = geometry(shape)
    return graph.tensor(name=name, dim=dim, stride=stride)
