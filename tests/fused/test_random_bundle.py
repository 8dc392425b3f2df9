"""The random bundle of the benchmark has the tensors of a real one, and the engine runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pipelines import emulated_for, opened
from random_bundle import BUNDLED, HART_1024, RELEASED, Sizes, _decoder, _diffusion, _text, _transformer, small_bundle

from hart_edge.runtime.bundle import WEIGHTS, Bundle, bundled_folder
from hart_edge.runtime.spec import ModelSpec


def shapes(spec: ModelSpec, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return dict([*_transformer(spec, sizes), *_diffusion(spec, sizes), *_decoder(spec, sizes), *_text(spec, sizes)])


def test_names_and_shapes_are_those_of_the_bundled_model() -> None:
    from safetensors import safe_open

    bundle = Bundle(bundled_folder(), check_files=False)
    with safe_open(bundle.file(WEIGHTS), framework="numpy") as file:
        want = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys() if not name.endswith((".one", ".zero"))}  # noqa: SIM118
    assert shapes(bundle.spec, BUNDLED) == want


def test_released_sizes_have_the_released_number_of_weights() -> None:
    """732 million in transformer and diffusion MLP."""
    counts = {name: np.prod(shape) for name, shape in shapes(HART_1024, RELEASED).items()}
    generator = sum(count for name, count in counts.items() if name.startswith(("transformer.", "residual_step.", "context.")))
    assert abs(generator / 732e6 - 1) < 0.02


def test_the_engine_runs_it(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    with opened(bundle, emulated_for(bundle)) as pipe:
        assert pipe.generate("a red circle", seed=1).size == (64, 64)
