"""Signed distances of the six shapes, in coordinates whose unit circle surrounds the shape.

x to the right, y downward; negative inside. Formulas after Inigo Quilez, "2D distance functions".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RING_HOLE = 0.55
SQUARE_HALF, ROUNDING = 0.73, 0.06
STAR_INNER = 0.46  # radius of the notches
CROSS_LENGTH, CROSS_HALF = 0.94, 0.31


def circle(x: Tensor, y: Tensor) -> Tensor:
    """|p| - 1"""
    return torch.hypot(x, y) - 1


def ring(x: Tensor, y: Tensor) -> Tensor:
    """| |p| - m | - w, m the middle of the band and w half its width"""
    return (torch.hypot(x, y) - (1 + RING_HOLE) / 2).abs() - (1 - RING_HOLE) / 2


def square(x: Tensor, y: Tensor) -> Tensor:
    """A box with slightly round corners."""
    side = SQUARE_HALF - ROUNDING
    right, down = x.abs() - side, y.abs() - side
    return torch.hypot(right.clamp(min=0), down.clamp(min=0)) + torch.maximum(right, down).clamp(max=0) - ROUNDING


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral, one corner up, corners slightly round."""
    root = math.sqrt(3)
    half = (1 - ROUNDING) * root / 2  # half a side
    x, y = x.abs() - half, half / root - y
    flip = x + root * y > 0
    x, y = torch.where(flip, (x - root * y) / 2, x), torch.where(flip, (-root * x - y) / 2, y)
    x = x - x.clamp(-2 * half, 0)
    return -torch.hypot(x, y) * torch.sign(y) - ROUNDING


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five points, one up: the plane folded into one tenth, then the distance to one edge."""
    c1, s1 = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = x.abs(), -y
    for a, b in ((c1, -s1), (-c1, -s1)):
        over = 2 * (a * x + b * y).clamp(min=0)
        x, y = x - over * a, y - over * b
    x, y = x.abs(), y - 1
    ex, ey = STAR_INNER * s1, STAR_INNER * c1 - 1  # from the point to the notch
    along = ((x * ex + y * ey) / (ex * ex + ey * ey)).clamp(0, 1)
    return torch.hypot(x - ex * along, y - ey * along) * torch.sign(y * ex - x * ey)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Two bars of equal length."""
    x, y = x.abs(), y.abs()
    along, across = torch.maximum(x, y) - CROSS_LENGTH, torch.minimum(x, y) - CROSS_HALF
    return torch.hypot(along.clamp(min=0), across.clamp(min=0)) + torch.maximum(along, across).clamp(max=0)


DISTANCES = {"circle": circle, "square": square, "triangle": triangle, "star": star, "ring": ring, "cross": cross}
