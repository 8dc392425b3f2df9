"""What several test folders share: recorded runs, the reference model of them, a tiny random checkpoint and its bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import TINY_MODEL, write_manifest
from safetensors.numpy import save_file

from hart_edge.export.checkpoint import Checkpoint, load_checkpoint, load_recorded_checkpoint
from hart_edge.export.exporter import export_bundle
from hart_edge.export.random_checkpoint import SIZES, make_checkpoint
from hart_edge.export.recording import Arrays, Recording, load_recording, run_reference
from hart_edge.export.reference.hart import HartReference
from hart_edge.runtime.spec import ENGINES, ModelSpec

pytest_plugins = ["quantized"]

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config: pytest.Config) -> None:
    """Workers of `pytest -n` have one thread each for PyTorch and NumPy: more would wait for each other's cores."""
    if config.getoption("numprocesses", None):
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """The recorded run that tests take as a checkpoint."""
    return GOLDEN / "B_argmax"


@pytest.fixture(scope="session", params=["A_smooth", "B_argmax"])
def recorded_folder(request: pytest.FixtureRequest) -> Path:
    """Folder of every recorded run in turn."""
    return GOLDEN / request.param


@pytest.fixture(scope="session")
def recorded_config(recorded_folder: Path) -> dict[str, Any]:
    return json.loads((recorded_folder / "config.json").read_text())


@pytest.fixture(scope="session")
def recording(recorded_folder: Path, recorded_config: dict[str, Any]) -> Recording:
    return load_recording(recorded_folder, recorded_config["call"])


@pytest.fixture(scope="session")
def reference(recorded_folder: Path) -> HartReference:
    """The PyTorch model of the recorded run."""
    checkpoint, _ = load_recorded_checkpoint(recorded_folder)
    return checkpoint.reference()


@pytest.fixture(scope="session")
def computed(reference: HartReference, recording: Recording) -> Arrays:
    """Everything the reference computes from the recorded inputs and noise."""
    return run_reference(reference, recording)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the published layout."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", SIZES["tiny"])


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_folder)


@pytest.fixture(scope="session")
def bundle_root(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 bundle that tests read but never change."""
    return export_bundle(checkpoint, tmp_path_factory.mktemp("bundle") / "fp32").root


@pytest.fixture(scope="session")
def bundle_root_fp16(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("bundle") / "fp16", "fp16").root


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A bundle whose manifest is right and whose engines are a few bytes each."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    save_file({"constants.codebook": np.arange(22, dtype=np.float32).reshape(11, 2)}, folder / "weights.safetensors")
    for name in ENGINES[1:]:
        (folder / f"{name}.onnx").write_bytes(f"graph of {name}".encode())
    write_manifest(folder)
    return folder


@pytest.fixture
def edit_manifest(bundle_folder: Path) -> Callable[..., None]:
    """Replace top-level entries of the tiny bundle's manifest."""

    def edit(**changes: Any) -> None:
        path = bundle_folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.fixture
def tiny_spec() -> ModelSpec:
    """The model of the tiny bundle."""
    return ModelSpec(**{key: tuple(value) if isinstance(value, list) else value for key, value in TINY_MODEL.items()})
