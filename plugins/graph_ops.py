"""Every operator that a graph may be given in place of standard ones, and that TensorRT can have as a plugin."""

from __future__ import annotations

from . import group_norm_silu, layer_norm_modulate, rms_norm, split_rotary, swiglu
from .graph_op import GraphOp

GRAPH_OPS: dict[str, GraphOp] = {
    op.name: op
    for op in (rms_norm.GRAPH_OP, split_rotary.GRAPH_OP, swiglu.GRAPH_OP, layer_norm_modulate.GRAPH_OP, group_norm_silu.GRAPH_OP)
}
"""By name."""
