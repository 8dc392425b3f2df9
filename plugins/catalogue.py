"""Every kernel instantiation, for compiling ahead: whatever a launch builder can ask for is in it."""

from __future__ import annotations

from . import (
    gate_residual,
    group_norm_silu,
    guided_sample,
    layer_norm_modulate,
    next_scale,
    noise,
    rms_norm,
    rope_cache,
    swiglu,
    to_uint8,
)
from .kernel import Kernel

OPERATORS = (
    rms_norm,
    rope_cache,
    swiglu,
    layer_norm_modulate,
    gate_residual,
    group_norm_silu,
    guided_sample,
    next_scale,
    to_uint8,
    noise,
)

KERNELS: tuple[Kernel, ...] = tuple(kernel for operator in OPERATORS for kernel in operator.KERNELS)
