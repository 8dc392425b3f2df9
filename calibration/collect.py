"""Runs prompts through a bundle and watches the tensors that products take in: first their peaks, then their histograms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto
from torch import Tensor

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.engine import Array, Engine, Tensors
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.spec import ModelSpec
from hart_edge.runtime.timing import StageTimes

from .graphs import MemoryEngine, open_with, said_before
from .products import CONV, Product
from .statistics import Histogram, Peaks

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
Key = tuple[str, str]
"""Engine and tensor."""
Take = Callable[[Key, Array, int, str], None]
"""Told of a tensor: key, values, axis of its channels, case."""

ONCE = "all"


@dataclass(frozen=True)
class Source:
    """A tensor to watch. axis: of its channels."""

    key: Key
    axis: int


def sources_of(products: Sequence[Product]) -> list[Source]:
    """The inputs of all products and the outputs of convolutions, each once.

    A convolution's output matters because ONNX Runtime computes one in integers only if it may round the result too.
    """
    found = {(p.engine, p.source): Source((p.engine, p.source), p.channels) for p in products}
    found |= {(p.engine, p.output): Source((p.engine, p.output), 1) for p in products if p.kind == CONV}
    return list(found.values())


class Collector:
    """Calibration runs of one bundle.

    Args:
        bundle: with a text encoder.
        graphs: of the engines whose tensors are watched.
        products: of those engines.
        prompts: one run each, seed = position + 1, with the model's own settings and the residual diffusion.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[str, ModelProto], products: Sequence[Product], prompts: Sequence[str]) -> None:
        self._bundle, self._graphs, self._prompts = bundle, graphs, list(prompts)
        self._sources = sources_of(products)

    def peaks(self, progress: Progress) -> dict[Key, Peaks]:
        """Largest magnitudes; InputError for a tensor that is not finite, never changes or was never seen."""
        found = {source.key: Peaks() for source in self._sources}
        self._run(lambda key, values, axis, case: found[key].add(values, axis, case, _name(key)), "largest values", progress)
        for key, peaks in found.items():
            if peaks.channels is None:
                raise InputError(f"{_name(key)} was never computed.", "Export the bundle again with `hart-edge export`.")
            peaks.check(_name(key))
        return found

    def histograms(self, peaks: Mapping[Key, Peaks], divisors: Mapping[Key, Tensor], progress: Progress) -> dict[Key, Histogram]:
        """How often which magnitude occurs, in channels that are divided first where `divisors` [K] says so."""
        found = {}
        for key in (source.key for source in self._sources):
            peak = peaks[key]
            found[key] = Histogram(float((peak.largest / divisors[key] if key in divisors else peak.largest).max()))

        def take(key: Key, values: Array, axis: int, case: str) -> None:
            if key in divisors:  # of matrix products alone, whose channels come last
                values = values / divisors[key].numpy().astype(np.float32)
            found[key].add(values, case)

        with said_before():
            self._run(take, "distributions", progress)
        return found

    def _run(self, take: Take, what: str, progress: Progress) -> None:
        with open_with(self._bundle, self._watched(take)) as pipe:
            options = replace(pipe.defaults, residual=True)
            for number, prompt in enumerate(self._prompts):
                progress(f"{what}, prompt", number, len(self._prompts))
                *_, last = pipe.loop.run(pipe.encode_text([prompt]), options, PhiloxNoise([number + 1]), StageTimes())
                if any(source.key[0] == "decoder" for source in self._sources):
                    pipe.decode(last.f_hat)

    def _watched(self, take: Take) -> dict[str, Engine]:
        engines = dict.fromkeys(source.key[0] for source in self._sources)
        return {name: self._watch(name, [s for s in self._sources if s.key[0] == name], take) for name in engines}

    def _watch(self, engine: str, sources: Sequence[Source], take: Take) -> Engine:
        graph = self._graphs[engine]
        given = {value.name for value in graph.graph.input}
        computed = list(dict.fromkeys(source.key[1] for source in sources if source.key[1] not in given))
        spec = self._bundle.spec

        def watch(inputs: Tensors, seen: dict[str, Array]) -> None:
            case, arrays = case_of(engine, inputs, spec), {**seen, **inputs}
            for source in sources:
                take(source.key, np.asarray(arrays[source.key[1]]), source.axis, case)

        return MemoryEngine(graph, self._bundle.root, engine, computed, watch)


def case_of(engine: str, inputs: Tensors, spec: ModelSpec) -> str:
    """Which scale or diffusion step a call is: transformer calls by their first position, steps by their timestep."""
    if engine == "transformer":
        starts = [0, *itertools.accumulate(spec.input_tokens(scale) for scale in range(spec.scales))]
        return f"scale {starts.index(int(np.asarray(inputs['position'])[0]))}"
    if engine == "residual_step":
        return f"timestep {int(np.asarray(inputs['timestep'])[0])}"
    return ONCE


def check_bundle(bundle: Bundle) -> None:
    """InputError for a bundle that cannot be calibrated."""
    manifest = bundle.manifest
    if manifest.quantization is not None:
        raise InputError(
            f"bundle {bundle.root} is {manifest.precision} already; expected an fp32 or fp16 bundle.",
            "Calibrate the bundle that it was made from.",
        )
    if manifest.text is None:
        raise InputError(f"bundle {bundle.root} has no text encoder; calibration runs prompts.", "Export it with --text-model.")


def _name(key: Key) -> str:
    return f"tensor {key[1]} of engine {key[0]}"
