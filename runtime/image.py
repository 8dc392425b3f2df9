"""Decoder output to Pillow images, and PNG files that remember how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from .errors import InputError
from .files import writable

RECIPE = "hart-edge"
"""Key of the JSON recipe in `Image.info` and in the PNG file; the prompt alone is under "Description"."""


def to_image(pixels: npt.NDArray[np.uint8], recipe: Mapping[str, Any]) -> Image.Image:
    """pixels [H, W, 3] uint8 → RGB image with its recipe (prompt, seed, settings) in `info`."""
    image = Image.fromarray(pixels, mode=None)
    image.info[RECIPE] = json.dumps(recipe, ensure_ascii=False)
    return image


def save_png(image: Image.Image, path: Path | str) -> None:
    """Write a PNG with the image's recipe as text chunks; InputError when the path cannot be written."""
    metadata = PngImagePlugin.PngInfo()
    recipe = image.info.get(RECIPE)
    if recipe is not None:
        metadata.add_itxt("Description", json.loads(recipe).get("prompt", ""))
        metadata.add_itxt(RECIPE, recipe)
    with writable(Path(path)) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The recipe of a PNG that `save_png` wrote; empty when it has none. InputError when it is no readable picture."""
    try:
        with Image.open(path) as image:
            image.load()
            recipe = json.loads(image.info.get(RECIPE, "{}"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a picture with a recipe: {error}.", "Expected a PNG file made by hart-edge.") from error
    return recipe if isinstance(recipe, dict) else {}
