"""What the bundled model does not have: normalised queries and keys, no context norm, a system prompt, an odd batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from pipelines import emulated_for, opened

from hart_edge.export.checkpoint import load_checkpoint
from hart_edge.export.exporter import export_bundle
from hart_edge.export.random_checkpoint import SIZES, make_checkpoint
from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.options import Options
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.timing import StageTimes

pytestmark = pytest.mark.slow
PROMPTS = ["a lighthouse at dusk", "", "three white horses"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("variant")
    size = replace(SIZES["tiny"], transformer=SIZES["tiny"].transformer | {"attn_l2_norm": True, "use_context_norm": False})
    checkpoint = load_checkpoint(make_checkpoint(folder / "checkpoint", size))
    return export_bundle(checkpoint, folder / "bundle", system_prompt="draw the city skyline")


@pytest.fixture(scope="module")
def pipes(bundle: Bundle) -> Iterator[tuple[Pipeline, Pipeline]]:
    with Pipeline.open(bundle, backend="cpu") as cpu, opened(bundle, emulated_for(bundle)) as fused:
        yield cpu, fused


def test_system_prompt_and_empty_prompt(pipes: tuple[Pipeline, Pipeline]) -> None:
    want, got = (pipe.memory.download(pipe.encode_text(PROMPTS).hidden) for pipe in pipes)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
    "options", [Options(cfg=3.0, top_k=50, smooth=False), Options(cfg=0.0, top_p=0.8, smooth=False, diffusion_steps=1)]
)
def test_tokens_are_those_of_the_cpu(pipes: tuple[Pipeline, Pipeline], options: Options) -> None:
    runs = [pipe.loop.run(pipe.encode_text(PROMPTS), options, PhiloxNoise([7, 8, 9]), StageTimes()) for pipe in pipes]
    for want, got in zip(*runs, strict=True):
        np.testing.assert_array_equal(pipes[1].memory.download(got.tokens), want.tokens)
        np.testing.assert_allclose(pipes[1].memory.download(got.f_hat), want.f_hat, atol=1e-3)
