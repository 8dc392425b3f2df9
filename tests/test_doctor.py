"""`hart-edge doctor` on machines that are pretended: no driver, an old card, an old driver, a hidden GPU build, everything there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from hart_edge.runtime import backends
from hart_edge.runtime.backends import BACKENDS, has_driver
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.cuda import devices
from hart_edge.runtime.doctor import Report, abilities, diagnose, machine, report
from hart_edge.runtime.doctor.gpu import GpuState, look_at_gpus
from hart_edge.runtime.doctor.packages import PARTS, REQUIREMENTS, Package, all_packages, packages_of
from hart_edge.runtime.errors import EngineError, GpuError, InputError, MissingPackageError

CORE_PACKAGES = [re.split("[>=]", text)[0] for text in REQUIREMENTS[""]]
RESTORE = "pip install --force-reinstall --no-deps onnxruntime-gpu"
OUT_OF_MEMORY, NO_DEVICE = 2, 100


class Driver:
    """The driver's library with one GPU; refused: status by the name of the call that is refused."""

    def __init__(self, version: int = 13000, capability: int = 90, count: int = 1, refused: dict[str, int] | None = None) -> None:
        self.refused, self.open = refused or {}, 0
        self.numbers = {"cuDriverGetVersion": version, "cuDeviceGetCount": count, "cuDeviceGet": 0}
        self.attributes = {75: capability // 10, 76: capability % 10}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name in self.refused:
                return self.refused[name]
            self.answer(name, *arguments)
            return 0

        return call

    def answer(self, name: str, *arguments: Any) -> None:
        if name in self.numbers:
            arguments[0]._obj.value = self.numbers[name]
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = self.attributes[arguments[1]]
        elif name == "cuDeviceGetName":
            arguments[0].value = b"Test GPU"
        elif name == "cuDeviceTotalMem_v2":
            arguments[0]._obj.value = 8 << 30
        elif name == "cuMemGetInfo_v2":
            arguments[0]._obj.value, arguments[1]._obj.value = 5 << 30, 8 << 30
        elif name in ("cuGetErrorName", "cuGetErrorString"):
            arguments[1]._obj.value = {OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY", NO_DEVICE: b"CUDA_ERROR_NO_DEVICE"}[arguments[0]]
        self.open += {"cuDevicePrimaryCtxRetain": 1, "cuDevicePrimaryCtxRelease": -1}.get(name, 0)


class Machine:
    """Decides what the code under test finds; everything is there until something is taken away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.absent: set[str] = set()
        self.versions: dict[str, str] = {}
        self.refusals: dict[str, Exception] = {}
        self.driver: Driver | None = Driver()
        self.providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(backends, "has_driver", lambda: self.driver is not None)
        monkeypatch.setattr(report, "look_at_gpus", lambda: look_at_gpus(self.driver))
        monkeypatch.setattr(abilities, "open_backend", self.open_backend)
        monkeypatch.setattr(metadata, "version", self.version)
        monkeypatch.setattr(ort, "get_available_providers", lambda: self.providers)

    def version(self, package: str) -> str:
        if package in self.absent:
            raise metadata.PackageNotFoundError(package)
        return self.versions.get(package, "2.13.0" if package == "torch" else "99.0")

    def open_backend(self, name: str, threads: int) -> Any:
        if name in self.refusals:
            raise self.refusals[name]
        self.opened.append(name)
        closed = SimpleNamespace(close=lambda: None)
        return SimpleNamespace(open_engine=lambda path, engine: closed, close=lambda: self.opened.append(f"{name} closed"))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def lacks(found: Report, command: str) -> tuple[str, list[str]]:
    """What a command lacks as one text, and its remedies."""
    ability = next(ability for ability in found.abilities if ability.command == command)
    return "\n".join(lack.what for lack in ability.lacks), [lack.remedy for lack in ability.lacks]


CUDA, ORT_CUDA, CPU = (f"generate --backend {name}" for name in ("cuda", "ort-cuda", "cpu"))


def test_everything_there(pretended: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnose()
    assert [ability.command for ability in found.abilities if not ability.works] == []
    assert (found.auto, found.gpu.cuda) == ("cuda", 13000)
    gpu = found.gpu.gpus[0]
    assert (gpu.name, gpu.capability, gpu.memory, gpu.free) == ("Test GPU", 90, 8 << 30, 5 << 30)
    assert pretended.driver is not None and pretended.driver.open == 0
    assert pretended.opened == [text for name in BACKENDS[1:] for text in (name, f"{name} closed")]
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "Test GPU, SM90, 8192.0 MiB, 5120.0 MiB free" in shown
    assert shown.rstrip().endswith("--backend auto takes cuda.")
    assert "pip install" not in shown


def test_no_driver(pretended: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended.driver = None
    monkeypatch.setattr("hart_edge.runtime.drivers.libcuda.LIBRARY", "libno-such-driver.so.1")
    found = diagnose()
    assert found.auto == "cpu" and found.gpu.gpus == () and pretended.opened == ["cpu", "cpu closed"]
    for command in (CUDA, ORT_CUDA, "build --backend tensorrt"):
        what, remedies = lacks(found, command)
        assert what.startswith("there is no NVIDIA driver") and "current NVIDIA driver" in remedies[0]
    assert lacks(found, "build --backend tensorrt-rtx") == ("", [])


def test_old_card(pretended: Machine) -> None:
    pretended.driver = Driver(capability=61)
    found = diagnose()
    assert "Test GPU has SM61; expected SM75 (Turing, 2018) or newer." in lacks(found, CUDA)[0]
    assert "SM61" in lacks(found, ORT_CUDA)[0]
    assert found.auto == "cpu" and found.gpu.problem is None


def test_driver_too_old_for_the_packages_of_cuda_13(pretended: Machine) -> None:
    pretended.driver = Driver(version=12080)
    pretended.refusals["ort-cuda"] = GpuError("the NVIDIA driver supports CUDA 12; this onnxruntime-gpu needs CUDA 13.", "Update it.")
    found = diagnose()
    assert lacks(found, CUDA)[0] == "the NVIDIA driver supports CUDA 12.8; expected 13.0 or newer."
    assert lacks(found, ORT_CUDA)[1] == ["Update it."]
    assert found.auto == "cpu"


def test_cpu_build_of_onnxruntime_hides_the_gpu_build(pretended: Machine) -> None:
    pretended.providers = ["CPUExecutionProvider"]
    found = diagnose()
    what, remedies = lacks(found, ORT_CUDA)
    assert "installed over onnxruntime-gpu" in what and remedies == [RESTORE]
    assert found.auto == "cuda" and "ort-cuda" not in pretended.opened


def test_every_package_that_is_absent_or_too_old_is_named(pretended: Machine) -> None:
    pretended.absent = {"nvmath-python", "onnx"}
    pretended.versions = {"nvidia-cublas": "12.9.1.4", "torch": "2.11.0+cu130"}
    pretended.refusals["cuda"] = MissingPackageError("nvmath is not installed.", "pip install 'hart-edge[fused]'")
    found = diagnose()
    what, remedies = lacks(found, CUDA)
    assert "nvmath-python absent, expected >=1.0; nvidia-cublas 12.9.1.4, expected >=13.0" in what
    assert set(remedies) == {"pip install 'hart-edge[fused]'"}
    assert "torch 2.11.0+cu130, expected ==2.13.0; onnx absent" in lacks(found, "export, verify, eval")[0]
    assert lacks(found, "build --backend tensorrt-rtx")[1] == ["pip install 'hart-edge[rtx]'"]
    assert found.auto == "ort-cuda"


def test_a_backend_that_opens_works_wherever_its_libraries_come_from(pretended: Machine) -> None:
    pretended.absent = {"nvidia-cublas"}  # of an installed toolkit, say
    assert lacks(diagnose(), CUDA) == ("", [])


@pytest.mark.parametrize("error", [GpuError("cuDNN refused.", "Update it."), RuntimeError("a library broke\nin many lines")])
def test_what_opening_says_is_reported(pretended: Machine, error: Exception) -> None:
    pretended.refusals["cuda"] = error
    found = diagnose()
    assert str(error).splitlines()[0].split(" Update")[0] in lacks(found, CUDA)[0]
    assert "many lines" not in lacks(found, CUDA)[0]
    assert found.auto == "ort-cuda"


def test_broken_core_is_exit_code_1(pretended: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    pretended.driver = None
    pretended.refusals["cpu"] = EngineError("engine transition does not load.", "Upgrade onnxruntime.")
    assert run(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "generate --backend cpu: Upgrade onnxruntime." in shown and "core install is broken" in shown


def state_of(**options: Any) -> GpuState:
    return look_at_gpus(Driver(**options))


def test_driver_without_a_gpu_and_driver_that_refuses() -> None:
    for state in (state_of(count=0), state_of(refused={"cuInit": NO_DEVICE})):
        assert state.problem is not None and "sees no GPU" in state.problem.what


def test_gpu_that_does_not_open_is_listed_with_the_reason() -> None:
    driver = Driver(refused={"cuMemGetInfo_v2": OUT_OF_MEMORY})
    gpu = look_at_gpus(driver).gpus[0]
    assert gpu.free is None and "out of GPU memory" in gpu.problem and gpu.name == "Test GPU"
    assert driver.open == 0


def test_install_without_a_model_still_opens_the_backends(pretended: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Path:
        raise InputError("this install has no bundle.")

    monkeypatch.setattr(machine, "bundled_folder", absent)
    found = diagnose()
    assert not found.model.usable and "no bundle" in found.model.summary
    assert found.auto == "cuda"


def test_json_to_a_file_and_to_standard_output(pretended: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "doctor.json"
    assert run(["doctor", "--json", str(target)]) == 0
    assert "what works" in capsys.readouterr().out
    facts = json.loads(target.read_text())
    assert facts["auto"] == "cuda"
    assert {"command": CUDA, "backend": "cuda", "lacks": [], "works": True} in facts["abilities"]
    assert {entry["name"] for entry in facts["packages"] if entry["fits"]} >= set(CORE_PACKAGES)
    assert [entry["use"] for entry in facts["disks"]] == ["kernel cache", "working folder"]
    assert facts["system"]["memory"] > 1 << 28 and facts["disks"][1]["free"] > 0
    assert run(["doctor", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu"]["gpus"][0]["capability"] == 90


@pytest.mark.parametrize(
    ("expected", "version", "fits"),
    [
        (">=2.0", "2.4.6", True),
        (">=13", "13", True),
        (">=13.3", "13.0.88", False),
        (">=1.31", "1.4", False),
        ("==2.13.0", "2.13.0+cpu", True),
        ("==2.13.0", "2.13.1", False),
        (">=2", "2.0.0rc1", True),
        (">=1", None, False),
    ],
)
def test_versions(expected: str, version: str | None, fits: bool) -> None:
    assert Package("p", expected, "", version).fits is fits


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    written = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, texts in REQUIREMENTS.items():
        own = {text.removeprefix("hart-edge[").rstrip("]") for text in written[extra] if text.startswith("hart-edge[")}
        assert own <= set(PARTS.get(extra, ())), extra
        others = {re.sub(r"\[.*?\]", "", text) for text in written[extra] if "hart-edge[" not in text and "sys_platform" not in text}
        assert others == set(texts), extra
    assert {package.extra for package in packages_of("fused")} == {"fused", "cuda", "nvrtc"}
    assert len({package.name for package in all_packages()}) == len(all_packages())


CORE_ONLY = f"""
import sys
from importlib import metadata

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "transformers", "onnx", "onnxscript", "cuda", "platformdirs", "tensorrt_rtx", "nvmath"}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def version(name, real=metadata.version):
    if name not in {CORE_PACKAGES!r}:
        raise metadata.PackageNotFoundError(name)
    return real(name)

sys.meta_path.insert(0, Block())
metadata.version = version
"""
DOCTOR = "from hart_edge.runtime.cli.app import run; code = run(['doctor', '--json', '-'])\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_core_install_alone() -> None:
    result = python(CORE_ONLY + DOCTOR + "raise SystemExit(code)")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert {entry["name"] for entry in facts["packages"] if entry["version"]} == set(CORE_PACKAGES)
    works = [entry["command"] for entry in facts["abilities"] if entry["works"]]
    assert (works, facts["auto"]) == ([CPU], "cpu")
    assert all(entry["lacks"][-1]["remedy"].startswith("pip install") for entry in facts["abilities"] if not entry["works"])
    assert "platformdirs" in facts["disks"][0]["problem"]


def test_torch_is_not_imported() -> None:
    result = python(DOCTOR + "import sys; print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)), file=sys.stderr)")
    assert result.stderr.strip().endswith("[]"), result.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not has_driver(), reason="there is no NVIDIA driver")
def test_real_gpu() -> None:
    found = diagnose()
    seen = [(gpu.index, gpu.name, gpu.capability, gpu.memory) for gpu in found.gpu.gpus]
    assert found.gpu.problem is None and found.auto is not None, found
    assert seen == [(info.index, info.name, info.capability, info.memory) for info in devices()]
    assert all(gpu.free is not None and 0 < gpu.free <= gpu.memory for gpu in found.gpu.gpus)
    first = next(ability for ability in found.abilities if ability.works)
    assert found.auto == first.backend, found.abilities
