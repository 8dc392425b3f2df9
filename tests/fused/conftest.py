"""Contexts of the fused engine: the emulated GPU, and the real one, on which tests are skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulated_scales import emulated_gpu
from emulator import emulated
from pipelines import KINDS, emulated_for, opened

from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.errors import GpuError, MissingPackageError
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.pipeline import Pipeline


@pytest.fixture(scope="session")
def gpu_context() -> Iterator[FusedContext]:
    """The GPU with everything the fused engine needs."""
    try:
        context = FusedContext()
    except (GpuError, MissingPackageError) as error:
        pytest.skip(f"no usable GPU: {error}")
    with context:
        yield context


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def context(request: pytest.FixtureRequest) -> FusedContext:
    """The emulated GPU, then the real one."""
    if request.param == "emulated":
        return emulated()
    real: FusedContext = request.getfixturevalue("gpu_context")
    return real


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def whole_context(request: pytest.FixtureRequest) -> FusedContext:
    """As `context`, with all that a whole generation needs."""
    if request.param == "emulated":
        return emulated_gpu()
    real: FusedContext = request.getfixturevalue("gpu_context")
    return real


@pytest.fixture(scope="module")
def cpu() -> Iterator[Pipeline]:
    """The bundled model on the CPU."""
    with Pipeline.open(Bundle(bundled_folder(), check_files=False), backend="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module", params=[KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.gpu)])
def fused(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """The bundled model on the fused engine."""
    bundle = Bundle(bundled_folder(), check_files=False)
    context = emulated_for(bundle) if request.param == KINDS[0] else request.getfixturevalue("gpu_context")
    with opened(bundle, context) as pipe:
        yield pipe
