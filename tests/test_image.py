"""Pixels and recipe survive the way through Pillow and a PNG file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hart_edge.runtime.errors import InputError
from hart_edge.runtime.image import read_recipe, save_png, to_image

PROMPTS = [
    "a lighthouse at dusk",
    "",
    "🦊 in 🌸, 👩‍👩‍👧",
    "منارة عند الغسق",
    "first line\nsecond line\r\n\ttabbed",
    "naïve “quotes” \\ \" ' {} % 深い森",
    "x" * 9_890,
]


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (19, 111, 3), dtype=np.uint8)


def recipe(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "seed": 2**64 - 1, "settings": {"cfg": 4.5, "top_k": None, "smooth": True}}


def test_image_has_the_pixels() -> None:
    image = to_image(pixels(), recipe(""))
    assert (image.mode, image.size) == ("RGB", (111, 19))
    np.testing.assert_array_equal(np.asarray(image), pixels())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_info_holds_the_recipe(prompt: str) -> None:
    assert json.loads(to_image(pixels(), recipe(prompt)).info["hart-edge"]) == recipe(prompt)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_png_round_trip(tmp_path: Path, prompt: str) -> None:
    path = tmp_path / "out.png"
    save_png(to_image(pixels(), recipe(prompt)), path)
    assert read_recipe(path) == recipe(prompt)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["Description"] == prompt
        np.testing.assert_array_equal(np.asarray(image), pixels())


def test_png_is_png_whatever_the_suffix(tmp_path: Path) -> None:
    save_png(to_image(pixels(), recipe("a")), str(tmp_path / "picture.dat"))
    assert (tmp_path / "picture.dat").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_image_of_another_program_is_saved_without_recipe(tmp_path: Path) -> None:
    save_png(Image.fromarray(pixels()), tmp_path / "out.png")
    assert read_recipe(tmp_path / "out.png") == {}


def test_recipe_survives_a_resize_of_the_image(tmp_path: Path) -> None:
    save_png(to_image(pixels(), recipe("a")).resize((7, 5)), tmp_path / "out.png")
    assert read_recipe(tmp_path / "out.png") == recipe("a")


def test_failed_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    save_png(to_image(pixels(), recipe("old")), path)
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"out\.png.*No space left"):
        save_png(to_image(pixels(), recipe("new")), path)
    assert read_recipe(path) == recipe("old")
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        save_png(to_image(pixels(), recipe("a")), tmp_path / "absent" / "out.png")
