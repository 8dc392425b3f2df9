"""`hart-edge calibrate` as a user types it: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hart_edge.calibration.collect import Collector
from hart_edge.calibration.run import Request, calibrate
from hart_edge.export.checkpoint import Checkpoint
from hart_edge.export.verify import verify_bundle
from hart_edge.runtime import Bundle, Pipeline
from hart_edge.runtime.bundle import MANIFEST, WEIGHTS
from hart_edge.runtime.certificate import read_certificate
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.files import sha256_of


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a lighthouse\na boat at sea\n")
    return path


@pytest.fixture
def rehash() -> Callable[[Path], None]:
    """Make the manifest agree with a changed weights file."""

    def update(root: Path) -> None:
        manifest = json.loads((root / MANIFEST).read_text())
        manifest["files"][WEIGHTS].update(bytes=(root / WEIGHTS).stat().st_size, sha256=sha256_of(root / WEIGHTS))
        (root / MANIFEST).write_text(json.dumps(manifest))

    return update


def test_the_manifest_says_how_it_was_made(w8a8_root: Path, bundle_root: Path) -> None:
    manifest = Bundle(w8a8_root).manifest
    assert manifest.precision == "int8-w8a8" and manifest.floats == "fp32" and manifest.folded == ("decoder",)
    assert manifest.source["bundle_sha256"] == sha256_of(bundle_root / MANIFEST)
    section = manifest.quantization
    assert section is not None and section["scheme"] == "w8a8" and section["range"] == "mse"
    assert section["prompts"]["count"] == 2 and len(section["prompts"]["sha256"]) == 64
    assert section["groups"]["transformer.layers.0.down"] == "weight-only" and section["groups"]["transformer.head"] == "float"
    assert section["groups"]["transformer.layers.1.down"] == "w8a8" and section["groups"]["decoder.mid"] == "weight-only"


def test_the_same_prompts_give_the_same_bytes(
    w8a8_root: Path, bundle_root: Path, choice: Callable[..., Path], prompts: Path, tmp_path: Path
) -> None:
    """In another process, with another order of sets and another number of threads."""
    chosen = choice("w8a8", transformer__layers__0__down="weight-only", transformer__head="float")
    code = "import sys; from hart_edge.runtime.cli import main; main(sys.argv[1:])"
    command = ["calibrate", str(bundle_root), "--prompts", str(prompts), "--sensitivity", str(chosen), "-o", str(tmp_path / "again")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code, *command], env=environment, timeout=300, check=True, capture_output=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {p.name: p.read_bytes() for p in w8a8_root.iterdir()}


def test_it_draws_and_passes_its_gates(w8a8_root: Path, checkpoint: Checkpoint) -> None:
    report = verify_bundle(Bundle(w8a8_root, check_files=False), checkpoint, ["a boat"], backend="cpu")
    assert report.passed, report.failures()
    kl = [check.value for check in report.checks if check.metric == "logits KL"]
    assert 0 < max(kl) < 0.1  # it is quantised, and not by much
    with Pipeline.open(Bundle(w8a8_root), backend="cpu") as pipe:
        assert pipe.generate("a boat").size == (128, 128)


def test_every_product_in_integers(bundle_root: Path, choice: Callable[..., Path], tmp_path: Path) -> None:
    """The decoder's convolutions too, those before its attention's reshapes among them."""
    made = calibrate(Bundle(bundle_root), tmp_path / "all", Request("w8a8-all", ("a boat", "a lighthouse")), choice("w8a8-all"))
    assert set(made.manifest.quantization["groups"].values()) == {"w8a8"}
    with Pipeline.open(made, backend="cpu") as pipe:
        assert pipe.generate("a boat").size == (128, 128)


def test_a_damaged_8_bit_weight_fails(
    weight_only_root: Path, checkpoint: Checkpoint, rehash: Callable[[Path], None], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(weight_only_root, tmp_path / "copy"))
    weight = load_file(root / WEIGHTS)["transformer.layers.1.qkv.weight"]
    weight[3, 5] = -weight[3, 5] if weight[3, 5].abs() > 3 else weight[3, 5] + 3
    _overwrite(root / WEIGHTS, "transformer.layers.1.qkv.weight", weight)
    rehash(root)
    report = verify_bundle(Bundle(root, check_files=False), checkpoint, ["a boat"], backend="cpu")
    failed = set(report.failed_stages())  # the pictures may show it as well: a free run flips a token or not
    assert "transformer" in failed and failed <= {"transformer", "pipeline"}


def _overwrite(path: Path, name: str, value: torch.Tensor) -> None:
    """Replace a tensor's bytes in a safetensors file, everything else where it was."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    data[8 + length + start : 8 + length + stop] = value.numpy().tobytes()
    path.write_bytes(bytes(data))


def test_commands_on_a_quantised_bundle(
    bundle_root: Path,
    choice: Callable[..., Path],
    prompts: Path,
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "int8"
    chosen = choice("weight-only")
    command = ["calibrate", str(bundle_root), "--prompts", str(prompts), "-o", str(target), "--scheme", "weight-only"]
    assert run([*command, "--sensitivity", str(chosen)]) == 0
    assert "int8-weight-only" in capsys.readouterr().out
    assert run(["verify", str(target), "--checkpoint", str(checkpoint_folder), "--prompts", str(prompts), "--backend", "cpu"]) == 0
    assert read_certificate(target).valid
    assert run(["inspect", str(target), "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out.split("all gates passed\n")[1])
    assert facts["quantization"]["scheme"] == "weight-only" and facts["certificate"]["valid"]
    assert run(["inspect", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "weight-only" in shown and "gates" in shown
    assert run([*command]) == 2  # it is there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "int4"], "scheme 'int4' is unknown"),
        (["--range", "widest"], "range 'widest' is unknown"),
        (["--sensitivity", "absent.json"], "absent.json is no sensitivity file"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, bundle_root: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", str(bundle_root), "--prompts", str(prompts), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_an_empty_prompt_file(bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    assert run(["calibrate", str(bundle_root), "--prompts", str(tmp_path / "empty.txt"), "-o", str(tmp_path / "out")]) == 2
    assert "empty.txt holds no prompts. Write one prompt a line." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_a_bundle_that_is_quantised_already(w8a8_root: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", str(w8a8_root), "--prompts", str(prompts), "-o", str(tmp_path / "out")]) == 2
    assert "is int8-w8a8 already; expected an fp32 or fp16 bundle. Calibrate the bundle that it was made from." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_text(bundle_root: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(bundle_root, tmp_path / "bundle"))
    manifest = json.loads((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(json.dumps(manifest | {"text": None}))
    assert run(["calibrate", str(root), "--prompts", str(prompts), "-o", str(tmp_path / "out")]) == 2
    assert "has no text encoder; calibration runs prompts. Export it with --text-model." in capsys.readouterr().err


def test_a_foreign_folder_is_not_overwritten(bundle_root: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    assert run(["calibrate", str(bundle_root), "--prompts", str(prompts), "-o", str(tmp_path / "letters"), "--overwrite"]) == 2
    assert "is no bundle and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "letters" / "dear.txt").exists()


def test_values_that_are_not_finite(
    bundle_root: Path, prompts: Path, rehash: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(bundle_root, tmp_path / "broken"))
    state = load_file(root / WEIGHTS)
    weight = state["transformer.layers.1.gate.weight"]
    weight[2, 3] = torch.inf
    _overwrite(root / WEIGHTS, "transformer.layers.1.gate.weight", weight)
    rehash(root)
    assert run(["calibrate", str(root), "--prompts", str(prompts), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "of engine transformer has values that are not finite (scale 0)" in error and "verify" in error
    assert not (tmp_path / "out").exists()


def test_activations_that_never_change(
    bundle_root: Path, prompts: Path, rehash: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(bundle_root, tmp_path / "dead"))
    state = load_file(root / WEIGHTS)
    _overwrite(root / WEIGHTS, "transformer.layers.0.up.weight", torch.zeros_like(state["transformer.layers.0.up.weight"]))
    rehash(root)
    assert run(["calibrate", str(root), "--prompts", str(prompts), "-o", str(tmp_path / "out")]) == 2
    assert "of engine transformer is 0 everywhere, in all prompts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_calibration(
    bundle_root: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Collector, "histograms", interrupted)
    assert run(["calibrate", str(bundle_root), "--prompts", str(prompts), "-o", str(tmp_path / "out")]) == 130
    error = capsys.readouterr().err
    assert "the same command starts from the beginning" in error and "nothing was left half-written" in error
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_a_manifest_that_contradicts_itself(w8a8_root: Path, tmp_path: Path) -> None:
    raw = json.loads((w8a8_root / MANIFEST).read_text())
    for changes, message in (
        ({"precision": "fp32"}, "does not go with quantization"),
        ({"quantization": raw["quantization"] | {"floats": "bf16"}}, "floats 'bf16'"),
        ({"quantization": raw["quantization"] | {"folded": ["encoder"]}}, r"folded engines \['encoder'\]"),
        ({"quantization": {}}, "malformed"),
    ):
        (tmp_path / MANIFEST).write_text(json.dumps(raw | changes))
        with pytest.raises(BundleError, match=message):
            Bundle(tmp_path, check_files=False)
