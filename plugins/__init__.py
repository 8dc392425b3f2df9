"""Fused operators: for each a formula, a NumPy truth and the ONNX function body that any backend can run."""

from .cached_attention import CACHED_ATTENTION

ONNX_FUNCTIONS = (CACHED_ATTENTION,)
"""Textual ONNX of every function that exported graphs may call."""

__all__ = ["CACHED_ATTENTION", "ONNX_FUNCTIONS"]
