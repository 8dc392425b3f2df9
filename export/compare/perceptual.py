"""A perceptual distance without learned parts: Gradient Magnitude Similarity Deviation.

    GMS(x) = (2·m_r·m_d + c) / (m_r² + m_d² + c),   GMSD = standard deviation of GMS over the picture

m_r and m_d are gradient magnitudes of reference and picture by Prewitt filters, after averaging over 2 × 2 pixels; c = 0.0026
for pixels in 0…1. Xue, Zhang, Mou, Bovik, "Gradient Magnitude Similarity Deviation", IEEE TIP 2014 (arXiv 1308.3052). 0 for
equal pictures; it tracks human ratings of distortions well, and like LPIPS smaller is better. LPIPS itself needs a trained network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import convolve

C = 0.0026
PREWITT = np.outer([1.0, 1.0, 1.0], [1.0, 0.0, -1.0]) / 3
LUMA = np.array([0.299, 0.587, 0.114])

Pixels = npt.NDArray[np.uint8]


def gmsd(picture: Pixels, reference: Pixels) -> float:
    """Distance of two pictures [H, W, 3] uint8."""
    ours, theirs = _gradient(picture), _gradient(reference)
    similarity = (2 * ours * theirs + C) / (ours**2 + theirs**2 + C)
    return float(np.std(similarity))


def _gradient(picture: Pixels) -> npt.NDArray[np.float64]:
    """Gradient magnitude of the brightness at half size."""
    grey = picture.astype(np.float64) @ LUMA / 255
    height, width = (side // 2 * 2 for side in grey.shape)
    half = grey[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return np.hypot(convolve(half, PREWITT, mode="nearest"), convolve(half, PREWITT.T, mode="nearest"))
