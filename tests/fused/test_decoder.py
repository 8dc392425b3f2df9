"""The whole decoder against the exported module and the bundle's engine; on the emulated GPU and on a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from components import allocated, put, rounded, run, weights_of
from test_decoder_layers import decoder
from tolerances import RELATIVE_NORM, relative_error

from hart_edge.plugins import Buffer
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.conv import Convolutions
from hart_edge.runtime.fused.decoder import DecoderBuffers, FusedDecoder
from hart_edge.runtime.fused.program import Program
from hart_edge.runtime.fused.weights import DeviceWeights, Weights
from hart_edge.runtime.fused.workspace import Memory
from hart_edge.runtime.ort import OrtEngine


def decoded(context: FusedContext, weights: Weights, f_hat: Array, side: int, dtype: str, times: int = 1) -> tuple[Array, Array]:
    """f_hat [B, Z, G, G] → image [B, H, W, 3] uint8 and decoded [B, 3, H, W] float32, clamped: what the engine gives."""
    batch, channels, grid, _ = f_hat.shape
    convolutions = Convolutions(context)

    def ask(memory: Memory) -> tuple[FusedDecoder, Buffer, Buffer]:
        made = FusedDecoder(context, weights, DecoderBuffers.plan(memory, weights, grid, batch, dtype), convolutions)
        latent = memory.buffer("f_hat", (batch, grid * grid, channels), "float32")
        return made, latent, memory.buffer("image", (batch, side, side, 3), "uint8")

    with allocated(context, ask) as (made, latent, image):
        put(context, latent, f_hat.reshape(batch, channels, -1).transpose(0, 2, 1))

        def add(program: Program) -> None:
            made.add_to(program, latent)
            made.add_pixels(program, image)

        run(context, add, times)
        picture = context.download(made.decoded).astype(np.float32).transpose(0, 3, 1, 2)
        return context.download(image), np.clip(picture, -1, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("channels", "multipliers", "latent", "grid", "batch"), [(32, (1, 2), 32, 8, 2), (32, (1, 2, 1), 6, 5, 1), (64, (1, 1), 8, 7, 3)]
)
def test_random_decoder(
    context: FusedContext, tmp_path: Path, dtype: str, channels: int, multipliers: tuple[int, ...], latent: int, grid: int, batch: int
) -> None:
    module = rounded(decoder(channels, multipliers, latent), dtype)
    f_hat = torch.randn(batch, latent, grid, grid)
    image, expected = module(f_hat)
    with weights_of(context, tmp_path, dtype, decoder=module) as weights:
        pixels, picture = decoded(context, weights, f_hat.numpy(), image.shape[1], dtype)
    assert relative_error(picture, expected) < RELATIVE_NORM[f"many layers {dtype}"]
    assert np.abs(pixels.astype(int) - image.numpy()).max() <= (1 if dtype == "float32" else 3)


@pytest.mark.parametrize(("batch", "times"), [(1, 3), (2, 1)])
def test_bundled_decoder(context: FusedContext, batch: int, times: int) -> None:
    """Also as a graph. Every stored weight is taken; pixels differ by one level where rounding falls otherwise, rarely by two."""
    bundle = Bundle(bundled_folder())
    spec = bundle.spec
    f_hat = (0.5 * np.random.default_rng(batch).standard_normal((batch, spec.latent_channels, spec.grid, spec.grid))).astype(np.float32)
    side = spec.image_size
    image, expected = np.empty((batch, side, side, 3), np.uint8), np.empty((batch, 3, side, side), np.float32)
    with OrtEngine(bundle.engine("decoder"), "decoder") as engine:
        engine.run({"f_hat": f_hat}, {"image": image, "decoded": expected})
    with DeviceWeights(bundle, context) as weights:
        pixels, picture = decoded(context, weights, f_hat, side, "float16", times)
        stored = {name for name in weights.names if name.startswith("decoder.") and not name.endswith((".one", ".zero"))}
        assert stored == weights.used
    assert relative_error(picture, expected) < RELATIVE_NORM["many layers float16"]
    assert np.abs(pixels.astype(int) - image).max() <= 2


@pytest.mark.gpu
@pytest.mark.slow
def test_decoder_of_the_released_size(gpu_context: FusedContext, tmp_path: Path) -> None:
    """1024 px: the widths, the sizes and the score matrices of the published model, with random weights."""
    module = rounded(decoder(160, (1, 1, 2, 2, 4), 32), "float16")
    f_hat = torch.randn(1, 32, 64, 64)
    _, expected = module(f_hat)
    with weights_of(gpu_context, tmp_path, "float16", decoder=module) as weights:
        _, picture = decoded(gpu_context, weights, f_hat.numpy(), 1024, "float16")
    assert relative_error(picture, expected) < RELATIVE_NORM["many layers float16"]
