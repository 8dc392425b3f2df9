"""Weights files of single modules, and components of the fused engine put together on them, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from hart_edge.plugins import Buffer
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.program import Program
from hart_edge.runtime.fused.weights import DeviceWeights, Weights
from hart_edge.runtime.fused.workspace import Memory, Plan, Workspace

T = TypeVar("T")


def rounded(module: nn.Module, dtype: str, gain: float = 1.0) -> nn.Module:
    """The module in float32 with weights that `dtype` has, norms moved off 1 and 0; products are scaled by `gain`."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        value = parameter.data * gain if parameter.ndim > 1 else parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.data = value.to(getattr(torch, dtype)).float()
        parameter.requires_grad_(False)
    return module


@contextmanager
def weights_of(context: FusedContext, folder: Path, dtype: str, **modules: nn.Module) -> Iterator[Weights]:
    """Modules by the name of their engine, as a bundle's weights file has them."""
    kind = getattr(torch, dtype)
    tensors = {
        f"{name}.{key}": value.to(kind).contiguous() for name, module in modules.items() for key, value in module.state_dict().items()
    }
    save_file(tensors, folder / "weights.safetensors")
    bundle: Any = SimpleNamespace(file=lambda name: folder / name)
    with DeviceWeights(bundle, context) as weights:
        yield weights


@contextmanager
def allocated(context: FusedContext, ask: Callable[[Memory], T]) -> Iterator[T]:
    """What `ask` gets from memory that was planned by asking once before."""
    plan = Plan()
    ask(plan)
    workspace = Workspace(context.device, context.stream, plan)
    try:
        yield ask(workspace)
    finally:
        context.stream.synchronize()
        workspace.close()


def run(context: FusedContext, add: Callable[[Program], None], times: int = 1) -> None:
    """Put a program together, run it and wait for it. The second run captures it and every later one launches the graph."""
    program = Program(context)
    add(program)
    for _ in range(times):
        program.run()
    context.stream.synchronize()
    program.close()


def put(context: FusedContext, buffer: Buffer, array: Array) -> Buffer:
    """Upload, in the buffer's type and shape."""
    context.upload(buffer, np.ascontiguousarray(array.reshape(buffer.shape).astype(buffer.dtype)))
    return buffer
