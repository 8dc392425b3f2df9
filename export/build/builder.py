"""Builds one engine: parse, check, configure, compile. Runs in the build process; a fault of TensorRT may end that process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hart_edge.runtime.errors import EngineError

from .backends import NATIVE
from .graph import Binding, Graph, read_graph
from .messages import Messages
from .network import check_network, kinds_of
from .plugins import AHEAD, Plugins, check_layers
from .shapes import Range, shape_range, varies


class Builder:
    """Builds engines of one bundle for one set of targets.

    Args:
        trt: `tensorrt_rtx` or `tensorrt`.
        log: its logger, which writes into `messages`.
        targets: architectures that every engine is for.
        ranges: how far the dimensions vary, from `dimension_ranges`.
        step: told what is being done.
        plugins: operators that the graphs are to have as plugins; registered already.
    """

    def __init__(
        self,
        trt: Any,
        log: Any,
        messages: Messages,
        targets: tuple[str, ...],
        ranges: Mapping[str, Range],
        step: Callable[[str], None],
        plugins: Plugins | None = None,
    ) -> None:
        self._trt, self._log, self._messages, self._step = trt, log, messages, step
        self._plugins = plugins or Plugins()
        self._targets, self._ranges = targets, ranges
        self._builder = trt.Builder(log)
        self._builder.max_threads = 1  # with more, what they allocate is ordered by chance, and with it the engine's bytes

    def build(self, name: str, path: Path) -> tuple[dict[str, Any], Any]:
        """Build the engine of an ONNX file; returns what the sidecar says of it, without what is known from the file alone, and
        the file's content.
        """
        self._step(f"parsing {name}")
        graph = read_graph(path, self._targets, self._plugins.forms)
        network = self._parse(graph, path)
        layers = check_network(self._trt, network, graph)
        plugins = check_layers(self._trt, layers, graph.fused, self._plugins)
        self._step(f"building {name}")
        engine = self._compile(network, graph, name)
        facts = {
            "inputs": [_describe(binding, self._ranges) for binding in graph.inputs],
            "outputs": [vars(binding) for binding in graph.outputs],
            **vars(graph.expected),
            "rewrites": graph.rewrites,
            "plugins": {name: {"nodes": count, "form": self._plugins.forms[name]} for name, count in plugins.items()},
            "layers": kinds_of(layers),
        }
        return facts, engine

    def _parse(self, graph: Graph, path: Path) -> Any:
        network = self._builder.create_network(self._flags())
        parser = self._trt.OnnxParser(network, self._log)
        parsed = parser.parse(graph.data, str(path))  # the path tells where the weights file lies
        self._plugins.faults.check(f"reading {path.name}")
        faults = [parser.get_error(k) for k in range(parser.num_errors)]
        if not parsed or faults:
            reasons = "; ".join(f"node {fault.node_name() or fault.node()}: {fault.desc()}" for fault in faults)
            raise EngineError(f"TensorRT does not read {path.name}: {reasons or 'no reason given'}.", "Export the bundle again.")
        self._messages.check(f"reading {path.name}")
        return network

    def _flags(self) -> int:
        flag = self._trt.NetworkDefinitionCreationFlag
        flags = 1 << int(flag.STRONGLY_TYPED)
        if AHEAD in self._plugins.forms.values():
            flags |= 1 << int(flag.PREFER_AOT_PYTHON_PLUGINS)
        return flags

    def _compile(self, network: Any, graph: Graph, name: str) -> Any:
        config = self._builder.create_builder_config()
        self._set_targets(config)
        config.add_optimization_profile(self._profile(graph.inputs))
        engine = self._builder.build_serialized_network(network, config)
        self._plugins.faults.check(f"building {name}")
        self._messages.check(f"building {name}")
        if engine is None:
            raise EngineError(f"TensorRT built no {name} engine and gave no reason.", "It may have run out of memory.")
        return engine

    def _set_targets(self, config: Any) -> None:
        if self._targets == (NATIVE,):
            return
        config.num_compute_capabilities = len(self._targets)
        for index, target in enumerate(self._targets):
            config.set_compute_capability(getattr(self._trt.ComputeCapability, target.upper()), index)

    def _profile(self, inputs: tuple[Binding, ...]) -> Any:
        profile = self._builder.create_optimization_profile()
        for binding in inputs:
            if varies(binding.shape):
                profile.set_shape(binding.name, *shape_range(binding.shape, self._ranges))
        return profile


def _describe(binding: Binding, ranges: Mapping[str, Range]) -> dict[str, Any]:
    """A binding with its smallest, fastest and largest shape."""
    smallest, fastest, largest = shape_range(binding.shape, ranges)
    return {**vars(binding), "min": smallest, "opt": fastest, "max": largest}
