"""Bundles beside each other and beside their PyTorch reference: size, memory, time, numerics and pictures, as one HTML file."""

from .facts import Asked, compare
from .page import render

__all__ = ["Asked", "compare", "render"]
