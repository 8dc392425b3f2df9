"""`to_uint8`: the truth against the decoder engine's module, the launches, the kernel against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import Gpu, at, sanitized, values
from torch import nn

from hart_edge.export.modules.decoder import PictureDecoder
from hart_edge.plugins import to_uint8 as op
from hart_edge.plugins.kernel import FLOATS
from hart_edge.runtime.errors import InputError

SIZES = [(1, 1, 1), (1, 19, 111), (2, 16, 22), (1, 989, 4), (3, 64, 64)]


class Rounding(PictureDecoder):
    """The decoder's graph with nothing in front of the rounding."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.dtype, self.post_quant_conv, self.decoder = torch.float32, nn.Identity(), nn.Identity()


def picture(size: tuple[int, int, int], channels_last: bool, dtype: str = "float32") -> np.ndarray:
    batch, height, width = size
    x = values((batch, height, width, 3) if channels_last else (batch, 3, height, width), dtype)
    x.reshape(-1)[:3] = -1, 1, 0  # zero is half-way between two levels
    return x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_truth_is_the_decoder_engine(size: tuple[int, int, int], dtype: str) -> None:
    x = picture(size, False, dtype)
    expected, _ = Rounding()(torch.from_numpy(x.astype(np.float32)))
    np.testing.assert_array_equal(op.to_uint8(x, False), expected)
    np.testing.assert_array_equal(op.to_uint8(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), True), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels_last", [True, False])
def test_grid_covers_every_pixel(size: tuple[int, int, int], channels_last: bool) -> None:
    batch, height, width = size
    shape = (batch, height, width, 3) if channels_last else (batch, 3, height, width)
    launch = op.launch(at(4096, shape), at(4096, (batch, height, width, 3), "uint8"), channels_last)
    per_thread = 4 if height * width % 4 == 0 else 1
    covered = launch.grid[0] * launch.block[0] * per_thread
    assert height * width <= covered < height * width + launch.block[0] * per_thread
    assert launch.grid[1] == batch
    assert launch.kernel in op.KERNELS


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"x is float32 \[1, 4, 8, 8\]"):
        op.launch(at(0, (1, 4, 8, 8)), at(0, (1, 8, 8, 3), "uint8"), False)
    with pytest.raises(InputError, match=r"out is int8 \[1, 8, 8, 3\]"):
        op.launch(at(0, (1, 3, 8, 8)), at(0, (1, 8, 8, 3), "int8"), False)


@pytest.mark.gpu
@pytest.mark.parametrize("size", sanitized(SIZES, 1, 3))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("misalign", [True, False])
def test_kernel(gpu: Gpu, size: tuple[int, int, int], dtype: str, channels_last: bool, misalign: bool) -> None:
    x, out = picture(size, channels_last, dtype), gpu.empty((*size, 3), "uint8")
    gpu.run(op.launch(gpu.put(x, dtype, misalign), out, channels_last))
    np.testing.assert_array_equal(gpu.get(out), op.to_uint8(x, channels_last))
