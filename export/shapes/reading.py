"""Reads the objects of a picture of the shapes data set back, without a neural network.

Colour by hue and chroma in CIELAB, objects as connected components, shape by the overlap with a template under the best
rotation. Knows nothing of how the picture was made, only the palette and the six shapes' geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage import color, measure, morphology, segmentation

from hart_edge.export.shapes.distance import DISTANCES
from hart_edge.export.shapes.scene import COLOURS
from hart_edge.runtime.errors import InputError

SMOOTHING = 0.004  # Gaussian before anything else, in picture sides (1.0 px at 256): removes noise, keeps notches
CHROMA = 17.0  # least chroma of an object; grounds stay below 7, the weakest rim (cyan) above 25
EDGE = 0.0045  # rim removed before colours are read, in picture sides: there they are mixed
SPECK = 0.003  # least area of an object; the smallest star has 0.0083
LIGHTNESS_WEIGHT = 0.35  # of L beside a and b: shading changes L most
FRINGE = 0.42  # a pixel with less than this share of its object's chroma is its blurred edge
FILLED = 0.7  # a hole this much covered by other objects is no hole
FIT = 0.65  # least overlap (intersection over union) with a template: 0.95 is usual, 0.87 the least seen on sharp pictures
GRID = 48  # side of the templates
SPAN = 1.6  # half a template's side, in equivalent radii sqrt(area / π): the star's point lies at 1.55
TURNS = {"circle": 0.0, "ring": 0.0, "square": 90.0, "cross": 90.0, "star": 72.0, "triangle": 120.0}  # symmetry, degrees
UNKNOWN = "unknown"
Region = Any  # scikit-image keeps the class of its regions private


@dataclass(frozen=True)
class Found:
    """One object: centre and radius in picture sides, area as a share of the picture; shape may be "unknown"."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    area: float


def read(image: np.ndarray) -> list[Found]:
    """Objects of `image` [H, W, 3] uint8, the largest first."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"The judge got a picture of {image.dtype} {image.shape}; expected uint8 [H, W, 3].")
    side = min(image.shape[:2])
    smooth = ndimage.gaussian_filter(image.astype(np.float32) / 255, (SMOOTHING * side, SMOOTHING * side, 0))
    lab = color.rgb2lab(smooth)
    coloured = np.hypot(lab[..., 1], lab[..., 2]) > CHROMA
    names = _colour_map(lab, coloured, side)
    labels = measure.label(_without_fringes(names, np.hypot(lab[..., 1], lab[..., 2])), background=0, connectivity=1)
    _remove_seen_through(labels, names, side)
    found = []
    for region in measure.regionprops(labels):
        if region.area >= SPECK * side * side:
            mask = _without_covered_holes(region, labels, side)
            colour = tuple(COLOURS)[int(names[tuple(region.coords[0])]) - 1]
            found.append(_describe(mask, region.bbox, colour, image.shape[:2]))
    return sorted(found, key=lambda item: -item.area)


@cache
def _palette() -> np.ndarray:
    """CIELAB of the palette as the judge weighs it [8, 3]."""
    return _weigh(color.rgb2lab(np.array(list(COLOURS.values()), np.float64)[None] / 255))[0]


def _weigh(lab: np.ndarray) -> np.ndarray:
    """CIELAB [..., 3] with the lightness weighed down and the chroma brought halfway to one length: hue decides."""
    chroma = np.hypot(lab[..., 1], lab[..., 2])[..., None]
    return np.concatenate([LIGHTNESS_WEIGHT * lab[..., :1], lab[..., 1:] * (60 / np.maximum(chroma, 1)) ** 0.5], axis=-1)


def _colour_map(lab: np.ndarray, coloured: np.ndarray, side: int) -> np.ndarray:
    """Per pixel 1 + the index of its object's colour, 0 for ground [H, W].

    Colours are read in the objects' cores and spread to their edges, where antialiasing and blur mix them.
    """
    brush = morphology.disk(max(round(EDGE * side), 1))
    core = ndimage.binary_erosion(coloured, brush, border_value=1)
    distance = np.linalg.norm(_weigh(lab[core])[:, None] - _palette(), axis=2)
    seeds = np.zeros(coloured.shape, np.int32)
    seeds[core] = 1 + distance.argmin(1)
    kept = np.zeros_like(seeds)
    for index in np.unique(seeds[seeds > 0]):
        opened = ndimage.binary_opening(seeds == index, brush)
        parts, _ = ndimage.label(opened)
        big = np.bincount(parts.ravel()) > SPECK * side * side / 6
        kept[opened & big[parts]] = index
    return segmentation.watershed(np.zeros_like(kept), kept, mask=coloured)


def _without_fringes(names: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """The colour map without blurred edges: pixels far paler than the middle of their object [H, W]."""
    labels, count = measure.label(names, background=0, connectivity=1, return_num=True)
    if count == 0:
        return labels
    on = labels > 0
    middle = ndimage.median(chroma[on], labels[on], np.arange(1, count + 1))
    return np.where(chroma >= FRINGE * np.append(np.inf, middle)[labels], names, 0)


def _holes(region: Region) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns, within the region's box, of each of its holes."""
    holes = measure.label(region.image_filled & ~region.image, connectivity=1)
    return [tuple(hole.coords.T) for hole in measure.regionprops(holes)]


def _without_covered_holes(region: Region, labels: np.ndarray, side: int) -> np.ndarray:
    """The region's mask within its box, holes filled that other objects cover."""
    mask = region.image.copy()
    other = ndimage.binary_dilation(labels[region.slice] > 0, iterations=max(round(0.01 * side), 1))
    for hole in _holes(region):
        if (labels[region.slice][hole] > 0).any() and other[hole].mean() >= FILLED:
            mask[hole] = True
    return mask


def _remove_seen_through(labels: np.ndarray, names: np.ndarray, side: int) -> None:
    """Clears, in place, what shows through the hole of an object that lies upon a larger one of that colour."""
    for region in measure.regionprops(labels):
        if region.area < SPECK * side * side or region.area_filled == region.area:
            continue
        around = ndimage.binary_dilation(np.pad(region.image_filled, 4), iterations=4)
        top, left, bottom, right = region.bbox
        if min(top, left) < 4 or bottom + 4 > len(labels) or right + 4 > labels.shape[1]:
            continue
        window = slice(top - 4, bottom + 4), slice(left - 4, right + 4)
        outside = names[window][around & ~np.pad(region.image_filled, 4)]
        ground = np.bincount(outside).argmax()
        for hole in _holes(region):
            if ground and (names[region.slice][hole] == ground).mean() >= FILLED:
                labels[region.slice][hole] = 0


def _describe(mask: np.ndarray, box: tuple[int, ...], colour: str, size: tuple[int, int]) -> Found:
    """The object whose mask [h, w] lies at `box` (top, left, bottom, right; pixels) in a picture of `size` (H, W)."""
    height, width = size
    rows, columns = np.nonzero(mask)
    y, x = rows.mean(), columns.mean()
    area = float(len(rows))
    shape, unit = _match(mask, y, x, area)
    side = min(size)
    centre = float(box[1] + x + 0.5) / width, float(box[0] + y + 0.5) / height
    return Found(colour, shape, *centre, (area / unit) ** 0.5 / side, area / (height * width))


def _match(mask: np.ndarray, y: float, x: float, area: float) -> tuple[str, float]:
    """The best template's shape, or "unknown", and the area of that shape at radius 1."""
    names, templates, areas = _templates()
    steps = _grid() * (area / np.pi) ** 0.5
    rows, columns = np.meshgrid(y + steps, x + steps, indexing="ij")
    sample = ndimage.map_coordinates(mask.astype(np.float32), [rows, columns], order=1).ravel()
    overlap = np.minimum(templates, sample).sum(1) / np.maximum(templates, sample).sum(1)
    best = int(overlap.argmax())
    return (names[best], areas[best]) if overlap[best] >= FIT else (UNKNOWN, np.pi)


def _grid() -> np.ndarray:
    """Coordinates of a template's cells [GRID], in equivalent radii."""
    return (np.arange(GRID) + 0.5) / GRID * 2 * SPAN - SPAN


@cache
def _templates() -> tuple[list[str], np.ndarray, list[float]]:
    """Shape names [T], masks [T, GRID * GRID] about their centroids at area π, areas at radius 1 [T]."""
    fine = torch.linspace(-1.2, 1.2, 481, dtype=torch.float64)
    names, masks, areas = [], [], []
    for name, distance in DISTANCES.items():
        inside = distance(fine[None, :].expand(481, 481), fine[:, None].expand(481, 481)).numpy() < 0
        area = float(inside.sum()) * 0.005**2
        middle = float(fine.numpy()[np.nonzero(inside)[0]].mean())  # of the rows: every shape is symmetric left to right
        scale = (area / np.pi) ** 0.5
        down, right = np.meshgrid(_grid() * scale, _grid() * scale, indexing="ij")
        for degrees in np.arange(0.0, max(TURNS[name], 1.0), 6.0):
            cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            u, v = torch.from_numpy(cos * right + sin * down), torch.from_numpy(cos * down - sin * right + middle)
            cover = (0.5 - distance(u, v) / (2 * SPAN * scale / GRID)).clamp(0, 1)
            names.append(name)
            masks.append(cover.numpy().ravel().astype(np.float32))
            areas.append(area)
    return names, np.stack(masks), areas
