"""Draws scenes: signed distances, shading, soft shadows and pale grounds, a batch at a time on any device.

A distance is negative inside a shape; coordinates of a shape put its surrounding circle at radius 1, y downward. Every
pixel comes from its own scene alone, so a scene's picture does not depend on its place in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hart_edge.export.shapes.distance import DISTANCES
from hart_edge.export.shapes.scene import BACKGROUNDS, COLOURS, MAX_ITEMS, SHAPES, Scene

LATTICE = 32  # cells per side of the mottled ground's noise
RIM = 0.009  # width of the darker rim, in picture sides
REACH = 1.45  # an item and its shadow end within this many radii


def pack(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Scenes as tensors.

    Returns:
        shape [B, 4] int64 (index into SHAPES, -1 where there is no item), place [B, 4, 4] (x, y, radius, rotation),
        colour [B, 4, 3], kind [B] int64 (index into BACKGROUNDS), tones [B, 2, 3], wave [B, 3] (frequency, angle, phase),
        lattice [B, 32, 32] (0..1; zero unless mottled); float32 where not said.
    """
    count = len(scenes)
    shape = np.full((count, MAX_ITEMS), -1, np.int64)
    place, colour = np.zeros((count, MAX_ITEMS, 4), np.float32), np.zeros((count, MAX_ITEMS, 3), np.float32)
    lattice = np.zeros((count, LATTICE, LATTICE), np.float32)
    for b, scene in enumerate(scenes):
        for k, item in enumerate(scene.items):
            shape[b, k] = SHAPES.index(item.shape)
            place[b, k] = item.x, item.y, item.radius, item.rotation
            colour[b, k] = COLOURS[item.colour]
        if scene.background.kind == "mottled":
            lattice[b] = np.random.default_rng(scene.background.seed).random((LATTICE, LATTICE), np.float32)
    grounds = [scene.background for scene in scenes]
    arrays = {
        "shape": shape,
        "place": place,
        "colour": colour / np.float32(255),
        "kind": np.array([BACKGROUNDS.index(ground.kind) for ground in grounds], np.int64),
        "tones": np.array([(ground.tone, ground.tone2) for ground in grounds], np.float32).reshape(count, 2, 3),
        "wave": np.array([(g.frequency, g.angle, g.phase) for g in grounds], np.float32).reshape(count, 3),
        "lattice": lattice,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def render(scenes: Sequence[Scene], size: int = 256, device: str | torch.device = "cpu") -> Tensor:
    """Pictures [B, 3, size, size], float32 in 0..1, on `device`."""
    return render_packed({name: tensor.to(device) for name, tensor in pack(scenes).items()}, size)


@torch.no_grad()
def render_packed(packed: dict[str, Tensor], size: int = 256) -> Tensor:
    """`render` of what `pack` made, on the device its tensors are on."""
    axis = (torch.arange(size, device=packed["shape"].device) + 0.5) / size  # pixel centres, in picture sides
    if axis.device.type != "cpu":
        return draw_whole(packed, axis)
    image = torch.empty(len(packed["shape"]), 3, size, size)
    for b in range(len(image)):
        image[b] = draw_windows({name: tensor[b : b + 1] for name, tensor in packed.items()}, axis)[0]
    return image


def draw_whole(packed: dict[str, Tensor], axis: Tensor) -> Tensor:
    """All scenes at once, every item over the whole picture: few and large operations, for a GPU."""
    image = _ground(packed, axis)
    keep, paint, light = _layers(packed, axis)
    for slot in reversed(range(MAX_ITEMS)):
        colour = packed["colour"][:, slot, :, None, None]  # [B, 3, 1, 1]
        _blend(image, keep[:, slot, None], colour, paint[:, slot, None], light[:, slot, None])
    return image.clamp_(0, 1)


def draw_windows(packed: dict[str, Tensor], axis: Tensor) -> Tensor:
    """One scene, every item within its own window only: an eighth of the pixels, for a CPU."""
    image, size = _ground(packed, axis), len(axis)
    for slot in reversed(range(MAX_ITEMS)):
        shape, place = int(packed["shape"][0, slot]), packed["place"][:, slot]
        if shape < 0:
            continue
        x, y, radius, _ = place[0].tolist()
        across, down = (slice(max(int((c - REACH * radius) * size), 0), min(int((c + REACH * radius) * size) + 2, size)) for c in (x, y))
        keep, paint, light = _item_maps(SHAPES[shape], place, axis[across], axis[down], size)
        colour = packed["colour"][:, slot, :, None, None]
        _blend(image[..., down, across], keep, colour, paint, light)
    return image.clamp_(0, 1)


def _blend(image: Tensor, keep: Tensor, colour: Tensor, paint: Tensor, light: Tensor) -> None:
    """image = image · keep + colour · paint + light, in place."""
    image.mul_(keep).addcmul_(colour, paint).add_(light)


def _layers(packed: dict[str, Tensor], axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per slot: how much of what lies below stays, the weight of the item's colour, white light added; each [B, 4, S, S]."""
    shape, size = packed["shape"], len(axis)
    keep = torch.ones(*shape.shape, size, size, device=axis.device)
    paint, light = torch.zeros_like(keep), torch.zeros_like(keep)
    for index, name in enumerate(SHAPES):
        rows, slots = torch.nonzero(shape == index, as_tuple=True)
        if len(rows):
            maps = _item_maps(name, packed["place"][rows, slots], axis, axis, size)
            keep[rows, slots], paint[rows, slots], light[rows, slots] = maps
    return keep, paint, light


def _item_maps(name: str, place: Tensor, across: Tensor, along: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`_layers` of the items `place` [N, 4], all of one shape, at columns `across` [W] and rows `along` [H]; each [N, H, W]."""
    x, y, radius, rotation = (column[:, None, None] for column in place.unbind(1))
    right, down = (across[None, None, :] - x) / radius, (along[None, :, None] - y) / radius
    distance = DISTANCES[name](*_turn(right, down, rotation)) * radius
    cover = (0.5 - distance * size).clamp_(0, 1)
    shadow = DISTANCES[name](*_turn(right - 0.1, down - 0.2, rotation))
    shadow = (0.5 - shadow / 0.4).clamp_(0, 1)
    shadow = shadow * shadow * (3 - 2 * shadow)
    far = (right + 0.35).square() + (down + 0.45).square()  # from the light, squared
    shade = 1.0 - 0.10 * far.clamp(max=2.5)
    rim = (1 + distance / RIM).clamp_(0, 1)
    light = 0.13 * torch.exp(-3 * far)
    return (1 - 0.3 * shadow) * (1 - cover), cover * shade * (1 - 0.35 * rim), cover * light * (1 - rim)


def _turn(right: Tensor, down: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The shape's own coordinates of points of the picture, the shape turned clockwise by `angle`."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * right + sin * down, cos * down - sin * right


def _ground(packed: dict[str, Tensor], axis: Tensor) -> Tensor:
    """Backgrounds [B, 3, S, S]: the two tones mixed by the pattern of the scene's kind."""
    frequency, angle, phase = (column[:, None, None] for column in packed["wave"].unbind(1))
    right, down = axis[None, None, :], axis[None, :, None]
    turn, cos, sin = 2 * torch.pi * frequency, torch.cos(angle), torch.sin(angle)
    along, across = turn * (cos * right + sin * down) + phase, turn * (cos * down - sin * right)
    noise = F.interpolate(packed["lattice"][:, None], size=(len(axis),) * 2, mode="bilinear")[:, 0]
    wave, kind = torch.sin(along), packed["kind"][:, None, None]
    mix = torch.where(kind == BACKGROUNDS.index("gradient"), down.expand_as(wave), 0.0)
    mix = torch.where(kind == BACKGROUNDS.index("striped"), (0.5 + 1.5 * wave).clamp(0, 1), mix)
    mix = torch.where(kind == BACKGROUNDS.index("dotted"), (2 * wave * torch.sin(across) - 0.5).clamp(0, 1), mix)
    mix = torch.where(kind == BACKGROUNDS.index("mottled"), noise, mix)[:, None]
    first, second = (tone[:, :, None, None] for tone in packed["tones"].unbind(1))
    return first + (second - first) * mix
