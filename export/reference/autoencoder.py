"""The hybrid image tokenizer: VQGAN-style encoder and decoder around the quantiser."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AutoencoderConfig
from .quantizer import HybridQuantizer


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = _norm(outer), nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells, scale C^-½."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # each [B, HW, C]
        weights = torch.softmax(q @ k.transpose(1, 2) * x.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out((weights @ v).transpose(1, 2).reshape(x.shape))


class _Level(nn.Module):
    """Res blocks of one resolution; attention after each when `attend`; a resampling conv when `resample`."""

    def __init__(self, inner: int, outer: int, blocks: int, attend: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(inner if i == 0 else outer, outer) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(outer) for _ in range(blocks if attend else 0))

    def run_blocks(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class _Conv(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1 if stride == 1 else 0)


class DownLevel(_Level):
    def __init__(self, inner: int, outer: int, attend: bool, resample: bool) -> None:
        super().__init__(inner, outer, blocks=2, attend=attend)
        if resample:
            self.downsample = _Conv(outer, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run_blocks(x)
        return self.downsample.conv(F.pad(x, (0, 1, 0, 1))) if hasattr(self, "downsample") else x


class UpLevel(_Level):
    def __init__(self, inner: int, outer: int, attend: bool, resample: bool) -> None:
        super().__init__(inner, outer, blocks=3, attend=attend)
        if resample:
            self.upsample = _Conv(outer, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run_blocks(x)
        return self.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResnetBlock(channels, channels), AttnBlock(channels), ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        inners = [config.ch, *widths[:-1]]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList(DownLevel(inners[i], widths[i], i == last, i != last) for i in range(len(widths)))
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        inners = [*widths[1:], widths[-1]]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(UpLevel(inners[i], widths[i], i == last, i != 0) for i in range(len(widths)))
        self.norm_out, self.conv_out = _norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, f: Tensor) -> Tensor:
        x = self.mid(self.conv_in(f))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class HybridAutoencoder(nn.Module):
    """All inference parameters of `tokenizer/` (its keys carry the prefix `vae.`)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = HybridQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)

    def encode(self, image: Tensor) -> Tensor:
        """image [B, 3, H, W] in 0…1 → latent [B, Z, G, G]."""
        return self.quant_conv(self.encoder(2 * image - 1))

    def decode(self, f_hat: Tensor) -> Tensor:
        """latent [B, Z, G, G] → picture [B, 3, H, W] clamped to −1…1."""
        return self.decoder(self.post_quant_conv(f_hat)).clamp(-1, 1)
