"""The GPU with every kernel of the catalogue, on each host; tests that ask for it are skipped where there is none.

A reduced selection for compute-sanitizer, `pytest -m "gpu and sanitizer" tests/plugins`, launches every kernel at small, odd
sizes: what the files choose with `sanitized`, and all `test_kernel…` of a file that chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import Gpu

from hart_edge.plugins import KERNELS, Kernel, sources
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.drivers import HOSTS
from hart_edge.runtime.errors import GpuError, MissingPackageError
from hart_edge.runtime.kernel_cache import KernelCache
from hart_edge.runtime.kernels import KernelLibrary

FOLDER = Path(__file__).parent
LAUNCHED: set[Kernel] = set()
"""By all tests of this process."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sanitizer: small, for compute-sanitizer; together they launch every kernel")


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    kernels = [item for item in items if item.path.parent == FOLDER and item.name.startswith("test_kernel")]
    choosing = {item.path for item in kernels if item.get_closest_marker("sanitizer")}
    for item in kernels:
        if item.path not in choosing and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.sanitizer)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LAUNCHED:
        absent = sorted(kernel.expression for kernel in set(KERNELS) - LAUNCHED)
        terminalreporter.write_line(f"{len(LAUNCHED)} kernels launched; of the catalogue not launched: {', '.join(absent) or 'none'}")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the compiled kernels; the hosts share it."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session", params=tuple(HOSTS))
def gpu_session(request: pytest.FixtureRequest, compiled: Path) -> Iterator[Gpu]:
    try:
        device = Device(host=request.param)
    except (GpuError, MissingPackageError) as error:
        pytest.skip(f"needs an NVIDIA GPU of SM75 or newer and the package of the host {request.param}: {error}")
    with device:
        gpu = Gpu(device, KernelLibrary(device, sources(), KERNELS, KernelCache(compiled)))
        yield gpu
        LAUNCHED.update(gpu.launched)


@pytest.fixture
def gpu(gpu_session: Gpu) -> Iterator[Gpu]:
    """The session's GPU; what a test puts on it is freed after the test."""
    if gpu_session.device.lost:
        pytest.skip("an earlier test lost the GPU: its failure is the one to look at")
    yield gpu_session
    gpu_session.free()
