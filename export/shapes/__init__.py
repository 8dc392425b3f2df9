"""Procedural text-to-image data at 256 px, and a judge that reads pictures back without a neural network.

The functions live in `sampler`, `captions`, `render` and `judge`; here are the words they share.
"""

from __future__ import annotations

from hart_edge.export.shapes.scene import Background, Group, Item, Scene, Spec, spec_of

__all__ = ["Background", "Group", "Item", "Scene", "Spec", "spec_of"]
