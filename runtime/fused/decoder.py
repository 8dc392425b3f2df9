"""The decoder on the GPU: f_hat to pixels, channels last throughout. What it computes is data, see decoder_layers.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from hart_edge.plugins import cast, group_norm_silu, join_phases, softmax_rows, to_uint8
from hart_edge.plugins.kernel import ITEM_BYTES, Buffer

from .blas import Shape
from .buffers import prefix, view
from .context import FusedContext
from .conv import Convolutions, ConvShape, channels_last, phase_bias, phase_kernels, phase_shape
from .decoder_layers import PREFIX, Attend, Conv, DecoderLayers, Enlarge, Layer, Norm, Spot, decoder_layers
from .program import Program
from .weights import Weights
from .workspace import Memory

PHASE = "decoder"
EPS = 1e-6
"""Of the group normalisations; the same in every checkpoint, as the autoencoder's code has it."""


@dataclass(frozen=True)
class DecoderBuffers:
    """Slots of the activations, and sums and gains of the group normalisations, as large as the largest needs."""

    layers: DecoderLayers
    batch: int
    dtype: str
    slots: tuple[Buffer, ...]
    sums: Buffer
    gains: Buffer

    @classmethod
    def plan(cls, memory: Memory, weights: Weights, grid: int, batch: int, dtype: str) -> DecoderBuffers:
        layers = layers_of(weights, grid)
        sizes = [size for _, size in sorted(layers.slots.items())]
        norms = [layer.x.shape(batch) for layer in layers.layers if isinstance(layer, Norm)]
        sums, gains = (
            max(shapes, key=math.prod) for shapes in zip(*(group_norm_silu.scratch_shapes(x, dtype) for x in norms), strict=True)
        )
        return cls(
            layers=layers,
            batch=batch,
            dtype=dtype,
            slots=tuple(memory.buffer(f"decoder.slot_{i}", (batch * size,), dtype, PHASE) for i, size in enumerate(sizes)),
            sums=memory.buffer("decoder.norm_sums", sums, "float32", PHASE),
            gains=memory.buffer("decoder.norm_gains", gains, "float32", PHASE),
        )

    def at(self, spot: Spot) -> Buffer:
        """The activations of all images in their slot, [B, H, W, C]."""
        return prefix(self.slots[spot.slot], *spot.shape(self.batch))


class FusedDecoder:
    """Decodes as many latents at once as its buffers are for.

    Args:
        weights: as `load_decoder` leaves them.
        convolutions: the context's; decoders of other batch sizes may share it.

    Attributes:
        decoded: [B, H, W, 3] in the networks' type, not clamped: what `add_to` makes.
    """

    def __init__(self, context: FusedContext, weights: Weights, buffers: DecoderBuffers, convolutions: Convolutions) -> None:
        self._context, self._weights, self._buffers, self._convolutions = context, weights, buffers, convolutions
        self._batch, self._dtype, self._layers, self._at = buffers.batch, buffers.dtype, buffers.layers, buffers.at
        self.decoded = buffers.at(buffers.layers.end)

    def add_to(self, program: Program, f_hat: Buffer) -> None:
        """Append the work from f_hat [B, G·G, Z] float32 to `decoded`."""
        start = self._at(self._layers.start)
        if self._dtype == "float32":
            program.copy(f_hat, start)
        else:
            program.kernels(cast.launch(view(f_hat, *start.shape), start))
        for layer in self._layers.layers:
            self._add(program, layer)

    def add_pixels(self, program: Program, image: Buffer) -> None:
        """Append the work from `decoded` to image [B, H, W, 3] uint8."""
        program.kernels(to_uint8.launch(self.decoded, image, channels_last=True))

    def _add(self, program: Program, layer: Layer) -> None:
        if isinstance(layer, Conv):
            self._add_conv(program, layer)
        elif isinstance(layer, Norm):
            self._add_norm(program, layer)
        elif isinstance(layer, Attend):
            self._add_attend(program, layer)
        else:
            self._convolve(program, _phases(self._weights, layer), self._at(layer.x), self._at(layer.z))
            program.kernels(join_phases.launch(self._at(layer.z), self._at(layer.y)))

    def _add_conv(self, program: Program, layer: Conv) -> None:
        added = None if layer.add is None else self._at(layer.add)
        self._convolve(program, _pair(self._weights, layer), self._at(layer.x), self._at(layer.y), added)

    def _convolve(self, program: Program, pair: tuple[Buffer, Buffer], x: Buffer, y: Buffer, added: Buffer | None = None) -> None:
        weight, bias = pair
        batch, height, width, inner = x.shape
        shape = ConvShape(batch, height, width, inner, weight.shape[0], weight.shape[1], self._dtype, added is not None)
        program.call([partial(self._convolutions.plan(shape).run, x, weight, bias, y, added)])

    def _add_norm(self, program: Program, layer: Norm) -> None:
        x, y = self._at(layer.x), self._at(layer.y)
        weight, bias = self._weights[f"{layer.name}.weight"], self._weights[f"{layer.name}.bias"]
        needed = group_norm_silu.scratch_shapes(x.shape, self._dtype)
        sums, gains = prefix(self._buffers.sums, *needed[0]), prefix(self._buffers.gains, *needed[1])
        program.kernels(*group_norm_silu.launches(x, weight, bias, sums, gains, y, EPS, layer.silu))

    def _add_attend(self, program: Program, layer: Attend) -> None:
        """Two batches of products with the softmax between them; q, k and v are read where the convolution put them."""
        qkv, scores, y = self._at(layer.qkv), self._at(layer.scores), self._at(layer.y)
        cells, width, dtype = layer.qkv.height * layer.qkv.width, layer.y.channels, self._dtype
        blas, stream, part = self._context.blas, self._context.stream, width * ITEM_BYTES[dtype]
        wide, square, narrow = cells * 3 * width, cells * cells, cells * width
        similar = Shape(
            cells, cells, width, dtype, dtype, transposed=True, alpha=width**-0.5,
            batch=self._batch, strides=(wide, wide, square), lead=(3 * width, 3 * width, cells),
        )  # fmt: skip
        mix = Shape(cells, width, cells, dtype, dtype, batch=self._batch, strides=(square, wide, narrow), lead=(cells, 3 * width, width))
        rows = view(scores, self._batch * cells, cells)
        program.call([partial(blas.plan(similar).run, qkv.address, qkv.address + part, scores.address, stream)])
        program.kernels(softmax_rows.launch(rows, rows))
        program.call([partial(blas.plan(mix).run, scores.address, qkv.address + 2 * part, y.address, stream)])


def layers_of(weights: Weights, grid: int) -> DecoderLayers:
    """The decoder's layers for latents of grid · grid cells, read off the stored tensors' shapes."""
    shapes = {name: weights.shape(name) for name in sorted(weights.names) if name.startswith(PREFIX)}
    return decoder_layers(shapes, grid)


def load_decoder(weights: Weights, grid: int) -> Weights:
    """Put all that the decoder needs on the device, convolutions channels last; returns the same weights."""
    for layer in layers_of(weights, grid).layers:
        if isinstance(layer, Conv):
            _pair(weights, layer)
        elif isinstance(layer, Enlarge):
            _phases(weights, layer)
        elif isinstance(layer, Norm):
            _ = weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"]
    return weights


def _pair(weights: Weights, layer: Conv) -> tuple[Buffer, Buffer]:
    """Weight [O, k, k, I] and bias [O]."""
    return weights.copy(f"{layer.name}.weight", f"{layer.name}.weight channels last", channels_last), weights[f"{layer.name}.bias"]


def _phases(weights: Weights, layer: Enlarge) -> tuple[Buffer, Buffer]:
    """Weight [4·O, 2, 2, I] and bias [4·O] of the phases."""
    name, bias = f"{layer.name}.weight of phases", weights.copy(f"{layer.name}.bias", f"{layer.name}.bias of phases", phase_bias)
    if name in weights.placed:
        return weights[name], bias
    stored = weights.host(f"{layer.name}.weight")
    return weights.put_made(name, phase_shape(stored), stored.dtype, partial(phase_kernels, stored)), bias
