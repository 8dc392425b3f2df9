"""Numbers that a bundle's graphs hold as constants, and that an engine of our own needs too."""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle import Bundle
from ..errors import BundleError
from ..spec import REEXPORT
from .onnx_file import OnnxGraph, read_graph


@dataclass(frozen=True)
class GraphFacts:
    """What the graphs of one bundle compute with.

    Attributes:
        norm_eps: of the transformer's, the context's and the diffusion condition's RMSNorm.
        attention_scale: factor of the transformer's attention scores.
        phi_ratio: share r of the φ convolution between scales.
        text_eps: of the text encoder's RMSNorm; 0 for a bundle without one.
    """

    norm_eps: float
    attention_scale: float
    phi_ratio: float
    text_eps: float

    @classmethod
    def of(cls, bundle: Bundle) -> GraphFacts:
        """Read them from the bundle's ONNX files; BundleError names what is not there."""
        graph = read_graph(bundle.engine("transformer"))
        has_text = "text_encoder" in bundle.manifest.engines
        return cls(
            norm_eps=_attribute(graph, "RMSNormalization", "epsilon"),
            attention_scale=_attribute(graph, "CachedAttention", "scale"),
            phi_ratio=_phi_ratio(read_graph(bundle.engine("transition"))),
            text_eps=_attribute(read_graph(bundle.engine("text_encoder")), "RMSNormalization", "epsilon") if has_text else 0.0,
        )


def _attribute(graph: OnnxGraph, operator: str, name: str) -> float:
    """The attribute, which all nodes of that type must agree on."""
    values = {node.floats[name] for node in graph.nodes if node.type == operator and name in node.floats}
    if len(values) != 1:
        raise BundleError(f"the graph's {operator} nodes have {len(values)} values of {name}; expected one.", REEXPORT)
    return values.pop()


def _phi_ratio(graph: OnnxGraph) -> float:
    """r of `f_hat_next = (f_hat + (1 − r)·up) + r·conv(up)`: the factor of the last summand."""
    producer = {name: node for node in graph.nodes for name in node.outputs}
    last = producer.get("f_hat_next")
    factors = [producer[name] for name in (last.inputs if last else ()) if name in producer and producer[name].type == "Mul"]
    values = [graph.scalars[name] for node in factors for name in node.inputs if name in graph.scalars]
    if len(values) != 1:
        raise BundleError(f"the transition's graph shows {len(values)} values of the φ ratio; expected one.", REEXPORT)
    return values[0]
