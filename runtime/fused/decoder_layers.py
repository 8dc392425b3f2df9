"""What the decoder does, as data: its layers in order, and where every activation lies. Knows nothing of devices.

Activations live in a few slots, each as large as its largest tenant: a layer takes free slots for what it makes and frees
those of what nobody needs any more. The structure is read off the weights' names and shapes.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import BundleError
from ..spec import REEXPORT

PREFIX = "decoder."
_BODY = "decoder.decoder."


@dataclass(frozen=True)
class Spot:
    """An activation of one image, channels last, [height, width, channels] (scores: [P, P, 1]), in a slot."""

    slot: int
    height: int
    width: int
    channels: int

    @property
    def elements(self) -> int:
        return self.height * self.width * self.channels

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """[B, H, W, C]."""
        return batch, self.height, self.width, self.channels


@dataclass(frozen=True)
class Conv:
    """y = conv(x) + bias (+ add); `name` + ".weight", ".bias"; y lies in a slot of its own."""

    name: str
    x: Spot
    y: Spot
    add: Spot | None = None


@dataclass(frozen=True)
class Norm:
    """y = group_norm(x), with SiLU behind it if `silu`; y may be x."""

    name: str
    x: Spot
    y: Spot
    silu: bool


@dataclass(frozen=True)
class Attend:
    """y = softmax(q · kᵀ / √C) · v over all cells, one head; qkv holds q, k, v side by side in its channels."""

    qkv: Spot
    scores: Spot
    y: Spot


@dataclass(frozen=True)
class Enlarge:
    """y = conv(x, enlarged by two with its nearest cells) + bias, [2H, 2W, O]; z: its four phases, [H + 1, W + 1, 4·O]."""

    name: str
    x: Spot
    z: Spot
    y: Spot


Layer = Conv | Norm | Attend | Enlarge


@dataclass(frozen=True)
class DecoderLayers:
    """The whole decoder: f_hat lies in `start` before, the picture (−1 … 1 before clamping, 3 channels) in `end` after."""

    layers: tuple[Layer, ...]
    start: Spot
    end: Spot

    @property
    def slots(self) -> dict[int, int]:
        """Elements per image that each slot must hold."""
        sizes: dict[int, int] = {}
        for layer in self.layers:
            for spot in vars(layer).values():
                if isinstance(spot, Spot):
                    sizes[spot.slot] = max(sizes.get(spot.slot, 0), spot.elements)
        return sizes


def decoder_layers(shapes: Mapping[str, tuple[int, ...]], grid: int) -> DecoderLayers:
    """The layers for latents of grid · grid cells.

    Args:
        shapes: of the decoder's stored tensors by name; convolutions are [out, in, k, k].

    Raises BundleError when a layer's weights are missing.
    """
    return _Builder(shapes).build(grid)


class _Builder:
    """Adds layers one behind the other. A method that takes `x` frees its slot unless it says otherwise."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._layers: list[Layer] = []
        self._free: list[int] = []
        self._count = 0

    def build(self, grid: int) -> DecoderLayers:
        start = self._take(grid, grid, self._weight(f"{PREFIX}post_quant_conv")[1])
        x = self._conv(f"{_BODY}conv_in", self._conv(f"{PREFIX}post_quant_conv", start))
        x = self._res_block(f"{_BODY}mid.block_1", x)
        x = self._attention(f"{_BODY}mid.attn_1", x)
        x = self._res_block(f"{_BODY}mid.block_2", x)
        for level in reversed(range(self._number(f"{_BODY}up.", ".block.0.conv1"))):
            x = self._level(f"{_BODY}up.{level}.", x)
        end = self._conv(f"{_BODY}conv_out", self._norm(f"{_BODY}norm_out", x))
        return DecoderLayers(tuple(self._layers), start, end)

    def _level(self, name: str, x: Spot) -> Spot:
        for i in range(self._number(f"{name}block.", ".conv1")):
            x = self._res_block(f"{name}block.{i}", x)
            if f"{name}attn.{i}.qkv.weight" in self._shapes:
                x = self._attention(f"{name}attn.{i}", x)
        if f"{name}upsample.conv.weight" not in self._shapes:
            return x
        return self._enlarge(f"{name}upsample.conv", x)

    def _res_block(self, name: str, x: Spot) -> Spot:
        h = self._conv(f"{name}.conv1", self._norm(f"{name}.norm1", x, keep=True))
        h = self._norm(f"{name}.norm2", h)
        if f"{name}.nin_shortcut.weight" in self._shapes:
            x = self._conv(f"{name}.nin_shortcut", x)
        return self._conv(f"{name}.conv2", h, add=x)

    def _attention(self, name: str, x: Spot) -> Spot:
        cells = x.height * x.width
        qkv = self._conv(f"{name}.qkv", self._norm(f"{name}.norm", x, silu=False, keep=True))
        scores, y = self._take(cells, cells, 1), self._take(x.height, x.width, x.channels)
        self._layers.append(Attend(qkv, scores, y))
        self._release(qkv, scores)
        return self._conv(f"{name}.proj_out", y, add=x)

    def _norm(self, name: str, x: Spot, silu: bool = True, keep: bool = False) -> Spot:
        """In place, or into a new slot if x must be kept."""
        y = self._take(x.height, x.width, x.channels) if keep else x
        self._layers.append(Norm(name, x, y, silu))
        return y

    def _conv(self, name: str, x: Spot, add: Spot | None = None) -> Spot:
        y = self._take(x.height, x.width, self._weight(name)[0])
        self._layers.append(Conv(name, x, y, add))
        self._release(x, *([] if add is None else [add]))
        return y

    def _enlarge(self, name: str, x: Spot) -> Spot:
        outer = self._weight(name)[0]
        z = self._take(x.height + 1, x.width + 1, 4 * outer)
        self._release(x)
        y = self._take(2 * x.height, 2 * x.width, outer)
        self._layers.append(Enlarge(name, x, z, y))
        self._release(z)
        return y

    def _take(self, height: int, width: int, channels: int) -> Spot:
        if self._free:
            return Spot(heapq.heappop(self._free), height, width, channels)
        self._count += 1
        return Spot(self._count - 1, height, width, channels)

    def _release(self, *spots: Spot) -> None:
        for spot in spots:
            heapq.heappush(self._free, spot.slot)

    def _weight(self, name: str) -> tuple[int, ...]:
        """Shape of a convolution's weight."""
        if f"{name}.weight" not in self._shapes:
            raise BundleError(f"the weights have no {name}.weight, which the decoder needs.", REEXPORT)
        return self._shapes[f"{name}.weight"]

    def _number(self, before: str, behind: str) -> int:
        """How many consecutive numbers from 0 stand between the two parts in the weights' names."""
        count = 0
        while f"{before}{count}{behind}.weight" in self._shapes:
            count += 1
        return count
