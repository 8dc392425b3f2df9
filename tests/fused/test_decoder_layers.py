"""The decoder as data: its layers, interpreted with torch in slots that really overlap, against the reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from components import rounded
from tolerances import RELATIVE_NORM, relative_error
from torch import Tensor, nn

from hart_edge.export.modules.decoder import PictureDecoder
from hart_edge.export.reference.autoencoder import Decoder
from hart_edge.plugins.join_phases import join_phases
from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.fused.conv import phase_bias, phase_kernels
from hart_edge.runtime.fused.decoder_layers import Attend, Conv, DecoderLayers, Enlarge, Layer, Norm, Spot, decoder_layers


def decoder(channels: int, multipliers: tuple[int, ...], latent: int) -> PictureDecoder:
    torch.manual_seed(0)
    config: Any = SimpleNamespace(ch=channels, ch_mult=multipliers, z_channels=latent)
    vae = SimpleNamespace(post_quant_conv=nn.Conv2d(latent, latent, 3, padding=1), decoder=Decoder(config))
    model: Any = SimpleNamespace(vae=vae)
    module = rounded(PictureDecoder(model, torch.float32), "float32")
    assert isinstance(module, PictureDecoder)
    return module


def tensors_of(module: PictureDecoder) -> dict[str, Tensor]:
    return {f"decoder.{name}": value for name, value in module.state_dict().items()}


def layers_of(tensors: dict[str, Tensor], grid: int) -> DecoderLayers:
    return decoder_layers({name: tuple(value.shape) for name, value in tensors.items()}, grid)


class Interpreter:
    """Runs layers for one image; a slot is one flat tensor."""

    def __init__(self, layers: DecoderLayers, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._slots = {slot: torch.full((size,), torch.nan) for slot, size in layers.slots.items()}

    def read(self, spot: Spot) -> Tensor:
        """[1, C, H, W]."""
        return self._slots[spot.slot][: spot.elements].view(spot.height, spot.width, spot.channels).permute(2, 0, 1)[None].clone()

    def write(self, spot: Spot, value: Tensor) -> None:
        self._slots[spot.slot][: spot.elements] = value[0].permute(1, 2, 0).reshape(-1)

    def run(self, layer: Layer) -> None:
        if isinstance(layer, Conv):
            weight, bias = self._pair(layer.name)
            y = F.conv2d(self.read(layer.x), weight, bias, padding=weight.shape[-1] // 2)
            self.write(layer.y, y if layer.add is None else y + self.read(layer.add))
        elif isinstance(layer, Norm):
            y = F.group_norm(self.read(layer.x), 32, *self._pair(layer.name), eps=1e-6)
            self.write(layer.y, F.silu(y) if layer.silu else y)
        elif isinstance(layer, Attend):
            self._attend(layer)
        else:
            weight, bias = (part.numpy() for part in self._pair(layer.name))
            kernels = torch.from_numpy(phase_kernels(weight)).permute(0, 3, 1, 2)
            self.write(layer.z, F.conv2d(self.read(layer.x), kernels, torch.from_numpy(phase_bias(bias)), padding=1))
            phases = self.read(layer.z).permute(0, 2, 3, 1).contiguous().numpy()
            self.write(layer.y, torch.from_numpy(join_phases(phases)).permute(0, 3, 1, 2))

    def _attend(self, layer: Attend) -> None:
        q, k, _ = self.read(layer.qkv).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        self.write(layer.scores, torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)[:, None])
        _, _, v = self.read(layer.qkv).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        self.write(layer.y, (self.read(layer.scores)[:, 0] @ v).transpose(1, 2).reshape(1, -1, layer.y.height, layer.y.width))

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]


@pytest.mark.parametrize(("channels", "multipliers", "latent", "grid"), [(32, (1, 2, 2), 6, 5), (64, (1,), 3, 3), (32, (2, 1, 3, 1), 4, 2)])
def test_layers_are_the_reference(channels: int, multipliers: tuple[int, ...], latent: int, grid: int) -> None:
    module = decoder(channels, multipliers, latent)
    tensors = tensors_of(module)
    layers = layers_of(tensors, grid)
    f_hat = torch.randn(1, latent, grid, grid)
    interpreter = Interpreter(layers, tensors)
    interpreter.write(layers.start, f_hat)
    for layer in layers.layers:
        interpreter.run(layer)
    expected = module.decoder(module.post_quant_conv(f_hat))
    assert relative_error(interpreter.read(layers.end), expected) < RELATIVE_NORM["many layers float32"]
    assert len(layers.slots) == 4


def test_every_weight_is_used_once() -> None:
    tensors = tensors_of(decoder(32, (1, 2), 6))
    layers = layers_of(tensors, 4)
    used = [f"{layer.name}.{part}" for layer in layers.layers if isinstance(layer, (Conv, Enlarge, Norm)) for part in ("weight", "bias")]
    assert len(used) == len(set(used))
    assert {name for name in tensors if not name.endswith((".one", ".zero"))} == set(used)


def test_slots_of_the_released_size_hold_one_large_activation_each() -> None:
    """1024 px: the phases of 513 · 513 · 4 · 160 elements, 337 MB in float16; the fourth slot only serves the attention."""
    tensors = tensors_of(decoder(32, (1, 1, 2, 2, 4), 32))  # a fifth of the released width
    sizes = layers_of(tensors, 64).slots
    assert max(sizes.values()) == 513 * 513 * 4 * 32
    assert sizes[3] == 64 * 64 * 128


def test_missing_weights_are_named() -> None:
    tensors = tensors_of(decoder(32, (1,), 6))
    del tensors["decoder.decoder.mid.block_2.conv1.weight"]
    with pytest.raises(BundleError, match=r"no decoder\.decoder\.mid\.block_2\.conv1\.weight"):
        layers_of(tensors, 4)
