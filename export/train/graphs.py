"""A training step as a CUDA graph: its few thousand small kernels start at once, not one after the other from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Metrics = dict[str, Tensor]
WARM_UP = 3  # steps that run as they are before one is captured: they compile, and choose algorithms


class StepGraphs:
    """Calls `function(*inputs)`, replayed as a graph where there is a GPU; one graph per `key`.

    The function has to have the same shapes for the same key, to draw from `generator` alone, never to wait for the
    device, and to leave what it computes in the same tensors: gradients, which it clears itself (`clear_gradients`).

    Args:
        function: tensors → scalar metrics.
        enabled: whether to use graphs at all.
    """

    def __init__(self, function: Callable[..., Metrics], generator: torch.Generator, enabled: bool) -> None:
        self.function, self.generator, self.enabled = function, generator, enabled
        self.calls: dict[Any, int] = {}
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Metrics]] = {}

    def __call__(self, key: Any, *inputs: Tensor) -> Metrics:
        count = self.calls[key] = self.calls.get(key, 0) + 1
        if not self.enabled or count <= WARM_UP:
            return _detached(self.function(*inputs))
        if key not in self.graphs:
            self.graphs[key] = self._capture(inputs)
        graph, static, metrics = self.graphs[key]
        for kept, given in zip(static, inputs, strict=True):
            kept.copy_(given)
        graph.replay()
        return {name: value.clone() for name, value in metrics.items()}

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Metrics]:
        static = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool()):
            metrics = _detached(self.function(*static))
        return graph, static, metrics

    def _pool(self) -> Any:
        """Graphs run one after the other and share their memory."""
        return next(iter(self.graphs.values()))[0].pool() if self.graphs else None


def _detached(metrics: Metrics) -> Metrics:
    """Nothing may keep a step's autograd graph alive: its nodes belong to the stream it ran on, not to the capture's."""
    return {name: value.detach() for name, value in metrics.items()}


def clear_gradients(module: nn.Module) -> None:
    """All gradients to zero, in the tensors that hold them."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    torch._foreach_zero_([p.grad for p in parameters if p.grad is not None])
