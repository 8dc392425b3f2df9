"""Resizing between scales as small matrices: `up @ h @ upᵀ` and `pool @ f @ poolᵀ`.

As matrices they are the same arithmetic in every backend; the resize operators of the backends differ in details.
"""

from __future__ import annotations

import numpy as np

from .noise import Float32

_A = -0.75  # cubic convolution coefficient (Keys 1981) of the published model's framework


def bicubic_matrix(source: int, target: int) -> Float32:
    """Bicubic interpolation along one axis, half-pixel centres, border repeated: [target, source]."""
    matrix = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        base = int(np.floor(centre))
        for tap in range(base - 1, base + 3):
            matrix[i, min(max(tap, 0), source - 1)] += _cubic(abs(centre - tap))
    return matrix.astype(np.float32)


def area_matrix(source: int, target: int) -> Float32:
    """Adaptive average pooling along one axis, windows floor(i·s/t) … ceil((i+1)·s/t): [target, source]."""
    matrix = np.zeros((target, source))
    for i in range(target):
        start, stop = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix.astype(np.float32)


def _cubic(x: float) -> float:
    if x <= 1:
        return (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    if x < 2:
        return _A * x**3 - 5 * _A * x**2 + 8 * _A * x - 4 * _A
    return 0.0
