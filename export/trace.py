"""Traces a module into an ONNX graph with torch.export."""

from __future__ import annotations

import logging
import warnings

import onnx_ir as ir
import torch
from torch import nn

from .engines import EngineTrace
from .graph import attach_functions, strip_trace_notes


def trace(module: nn.Module, plan: EngineTrace) -> ir.Model:
    """Returns the graph with initializers named as the module's parameters and the bodies of our functions attached."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            plan.fresh_samples(),
            dynamo=True,
            opset_version=plan.opset,
            dynamic_shapes=plan.dynamic,
            input_names=plan.inputs,
            output_names=plan.outputs,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model = program.model
    attach_functions(model)
    strip_trace_notes(model)
    return model
