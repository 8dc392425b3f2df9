"""The GPU with every kernel of the catalogue; tests that ask for it are skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from devices import Gpu

from hart_edge.plugins import KERNELS, sources
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.errors import GpuError, MissingPackageError
from hart_edge.runtime.kernels import KernelLibrary


@pytest.fixture(scope="session")
def gpu_session() -> Iterator[Gpu]:
    try:
        device = Device()
    except (GpuError, MissingPackageError) as error:
        pytest.skip(f"no usable GPU: {error}")
    with device:
        yield Gpu(device, KernelLibrary(device, sources(), KERNELS))


@pytest.fixture
def gpu(gpu_session: Gpu) -> Iterator[Gpu]:
    """The session's GPU; what a test puts on it is freed after the test."""
    yield gpu_session
    gpu_session.free()
