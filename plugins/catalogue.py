"""Every kernel instantiation, for compiling ahead: whatever a launch builder can ask for is in it."""

from __future__ import annotations

from . import (
    add_bias,
    add_silu,
    attention,
    cast,
    context_entry,
    diffusion_update,
    flash_attention,
    gate_residual,
    group_norm_silu,
    guided_sample,
    join_phases,
    latent_sum,
    layer_norm_modulate,
    next_scale,
    noise,
    rms_norm,
    rope_cache,
    rope_tables,
    softmax_rows,
    split_rotary,
    swiglu,
    take_rows,
    to_uint8,
    transpose,
)
from .kernel import Kernel

OPERATORS = (
    rms_norm,
    rope_cache,
    split_rotary,
    swiglu,
    layer_norm_modulate,
    gate_residual,
    group_norm_silu,
    guided_sample,
    next_scale,
    to_uint8,
    noise,
    add_bias,
    add_silu,
    cast,
    diffusion_update,
    take_rows,
    join_phases,
    softmax_rows,
    attention,
    flash_attention,
    rope_tables,
    context_entry,
    latent_sum,
    transpose,
)

KERNELS: tuple[Kernel, ...] = tuple(kernel for operator in OPERATORS for kernel in operator.KERNELS)
