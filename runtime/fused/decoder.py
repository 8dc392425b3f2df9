"""The decoder on the GPU: f_hat to pixels, channels last throughout. What it computes is data, see decoder_layers.py."""

from __future__ import annotations

import math
from functools import partial

from hart_edge.plugins import cast, group_norm_silu, softmax_rows, to_uint8, upsample
from hart_edge.plugins.kernel import ITEM_BYTES, Buffer

from .blas import Shape
from .buffers import prefix, view
from .context import FusedContext
from .conv import Convolutions, ConvShape, channels_last
from .decoder_layers import PREFIX, Attend, Conv, Layer, Norm, Spot, decoder_layers
from .program import Program
from .weights import Weights
from .workspace import Memory

PHASE = "decoder"
EPS = 1e-6
"""Of the group normalisations; the same in every checkpoint, as the autoencoder's code has it."""


class FusedDecoder:
    """Decodes `batch` latents at once.

    Args:
        memory: a plan, or the workspace made from it; all buffers belong to the phase "decoder".
        convolutions: the context's; decoders of other batch sizes may share it.
        grid: side of the latent, G.
        dtype: of weights and activations.

    Attributes:
        decoded: [B, H, W, 3] in dtype, not clamped: what `add_to` makes.
    """

    def __init__(
        self, context: FusedContext, weights: Weights, memory: Memory, convolutions: Convolutions, grid: int, batch: int, dtype: str
    ) -> None:
        self._context, self._weights, self._memory, self._convolutions = context, weights, memory, convolutions
        self._batch, self._dtype = batch, dtype
        shapes = {name: weights.shape(name) for name in sorted(weights.names) if name.startswith(PREFIX)}
        self._layers = decoder_layers(shapes, grid)
        sizes = sorted(self._layers.slots.items())
        self._slots = [memory.buffer(f"decoder.slot_{slot}", (batch * size,), dtype, PHASE) for slot, size in sizes]
        self._sums, self._gains = self._norm_scratch()
        self.decoded = self._at(self._layers.end)

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
            program.kernels(upsample.launch(self._at(layer.x), self._at(layer.y)))

    def _add_conv(self, program: Program, layer: Conv) -> None:
        name, x, y = layer.name, self._at(layer.x), self._at(layer.y)
        weight = self._weights.copy(f"{name}.weight", f"{name}.weight channels last", channels_last)
        batch, height, width, inner = x.shape
        shape = ConvShape(batch, height, width, inner, y.shape[3], weight.shape[1], self._dtype, layer.add is not None)
        added = None if layer.add is None else self._at(layer.add)
        program.call([partial(self._convolutions.plan(shape).run, x, weight, self._weights[f"{name}.bias"], y, added)])

    def _add_norm(self, program: Program, layer: Norm) -> None:
        x, y = self._at(layer.x), self._at(layer.y)
        weight, bias = self._weights[f"{layer.name}.weight"], self._weights[f"{layer.name}.bias"]
        needed = group_norm_silu.scratch_shapes(x.shape, self._dtype)
        sums, gains = prefix(self._sums, *needed[0]), prefix(self._gains, *needed[1])
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

    def _norm_scratch(self) -> list[Buffer]:
        """Sums and gains of the group normalisations, as large as the largest needs."""
        norms = [layer.x.shape(self._batch) for layer in self._layers.layers if isinstance(layer, Norm)]
        pairs = zip(*(group_norm_silu.scratch_shapes(shape, self._dtype) for shape in norms), strict=True)
        names = ("decoder.norm_sums", "decoder.norm_gains")
        return [self._memory.buffer(name, max(shapes, key=math.prod), "float32", PHASE) for name, shapes in zip(names, pairs, strict=True)]

    def _at(self, spot: Spot) -> Buffer:
        """The activations of all images in their slot, [B, H, W, C]."""
        return prefix(self._slots[spot.slot], *spot.shape(self._batch))
