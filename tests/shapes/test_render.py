"""The renderer: shape, range, determinism, independence of the batch, and the two ways it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hart_edge.export.shapes.distance import DISTANCES
from hart_edge.export.shapes.render import draw_whole, pack, render, render_packed
from hart_edge.export.shapes.sampler import sample_scene
from hart_edge.export.shapes.scene import BACKGROUNDS, COLOURS, Background, Item, Scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(11)
    return [sample_scene(rng) for _ in range(9)]


@pytest.mark.parametrize("size", [19, 111, 256])
def test_shape_type_and_range(scenes: list[Scene], size: int) -> None:
    image = render(scenes[:3], size)
    assert image.shape == (3, 3, size, size)
    assert image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1


def test_no_scene_gives_no_picture() -> None:
    assert render([], 19).shape == (0, 3, 19, 19)


def test_a_picture_does_not_depend_on_its_place(scenes: list[Scene]) -> None:
    together, reverse = render(scenes, 111), render(scenes[::-1], 111).flip(0)
    alone = torch.cat([render([scene], 111) for scene in scenes])
    assert torch.equal(together, reverse)
    assert torch.equal(together, alone)
    assert torch.equal(together, render_packed(pack(scenes), 111))


def test_whole_pictures_equal_windows(scenes: list[Scene]) -> None:
    axis = (torch.arange(111) + 0.5) / 111
    # the same formulas per pixel; only vector lengths differ, so at most a rounding of the last bits
    torch.testing.assert_close(draw_whole(pack(scenes), axis), render(scenes, 111), rtol=0, atol=1e-6)


def test_sizes_show_the_same_scene(scenes: list[Scene]) -> None:
    halved = torch.nn.functional.avg_pool2d(render(scenes, 256), 2)
    assert (halved - render(scenes, 128)).abs().mean() < 0.01


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_distances(name: str) -> None:
    axis = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    field = DISTANCES[name](axis[None, :].expand(301, 301), axis[:, None].expand(301, 301))
    steepest = max((field.diff(dim=dim) / 0.01).abs().max() for dim in (0, 1))
    inside = torch.hypot(axis[None, :], axis[:, None])[field < 0]
    assert steepest <= 1 + 1e-9
    assert 0.9 < inside.max() <= 1.02


def test_every_ground_is_pale_and_differs() -> None:
    item = (Item("circle", "red", "small", 0.5, 0.5, 0.09),)
    images = render([Scene(item, None, Background(kind)) for kind in BACKGROUNDS], 128)
    grounds = images[..., :40, :]
    assert grounds.min() > 0.6
    assert (grounds.amax(1) - grounds.amin(1)).max() < 0.12
    for i in range(len(images)):
        for j in range(i):
            assert not torch.equal(grounds[i], grounds[j])


def test_an_item_has_its_colour_a_rim_and_a_shadow() -> None:
    image = render([Scene((Item("circle", "blue", "large", 0.5, 0.5, 0.2),), None, Background())])[0]
    blue = torch.tensor(COLOURS["blue"]) / 255
    brightness = image.sum(0)
    middle, rim = brightness[128, 170], brightness[128, 178]
    assert (image[:, 140, 140] - blue).abs().max() < 0.12
    assert rim < 0.85 * middle
    assert brightness[188, 133] < brightness[66, 128] - 0.2  # below the circle, and above it
