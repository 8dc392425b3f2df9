"""ONNX to TensorRT: the engines of a bundle, built in a process of their own. Needs no PyTorch, and no GPU for TensorRT-RTX."""

from .backends import BACKENDS, check_targets
from .run import build_bundle

__all__ = ["BACKENDS", "build_bundle", "check_targets"]
