"""Writes the quantised bundle's weights file, and points graphs into it. Knows nothing of how the numbers came about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from onnx import ModelProto, TensorProto
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hart_edge.export.weights import Placement, TensorFact, WeightsWriter
from hart_edge.runtime.bundle import WEIGHTS, Bundle
from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.spec import REEXPORT


def write_weights(bundle: Bundle, target: Path, changed: Mapping[str, Tensor]) -> dict[str, Placement]:
    """Copy the bundle's weights file with some tensors replaced and others added; returns where all of them lie.

    Wide elements come first, so that every tensor starts at a multiple of its element size: safetensors has no padding.

    Args:
        bundle: the source.
        target: file to make.
        changed: tensors by name, in place of the source's or beside them.
    """
    try:
        with safe_open(bundle.file(WEIGHTS), framework="pt") as source:
            kept = [name for name in source.offset_keys() if name not in changed]
            facts = {name: TensorFact.of(source.get_tensor(name)) for name in kept}
            facts |= {name: TensorFact.of(value) for name, value in changed.items()}
            facts = dict(sorted(facts.items(), key=lambda item: -item[1].dtype.itemsize))
            with WeightsWriter(target, facts) as writer:
                writer.write((name, changed[name] if name in changed else source.get_tensor(name)) for name in facts)
                return writer.placements
    except SafetensorError as error:
        raise BundleError(f"{bundle.root / WEIGHTS}: {error}.", REEXPORT) from error


def place(model: ModelProto, engine: str, placements: Mapping[str, Placement]) -> None:
    """Point every external initializer of the graph at its tensor in the weights file."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            where = placements[f"{engine}.{tensor.name}"]
            del tensor.external_data[:]
            for key, value in (("location", WEIGHTS), ("offset", where.offset), ("length", where.nbytes)):
                tensor.external_data.add(key=key, value=str(value))


def embed(model: ModelProto, engine: str, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into the graph itself, in place of the weights file."""
    for initializer in model.graph.initializer:
        value = tensors.get(f"{engine}.{initializer.name}")
        if value is not None:
            del initializer.external_data[:]
            initializer.data_location = TensorProto.DEFAULT
            initializer.raw_data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
