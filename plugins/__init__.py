"""Fused operators: for each a formula and a NumPy truth, and an ONNX function body or a CUDA kernel with its launches."""

from .cached_attention import CACHED_ATTENTION
from .catalogue import KERNELS
from .kernel import Buffer, Kernel, Launch, Pointer, sources

ONNX_FUNCTIONS = (CACHED_ATTENTION,)
"""Textual ONNX of every function that exported graphs may call."""

__all__ = ["CACHED_ATTENTION", "KERNELS", "ONNX_FUNCTIONS", "Buffer", "Kernel", "Launch", "Pointer", "sources"]
