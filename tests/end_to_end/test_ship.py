"""A model in the package: shipped once, restored to the last bit, taken where no bundle is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hart_edge.export.checkpoint import Checkpoint, load_checkpoint
from hart_edge.export.evaluate import open_reference
from hart_edge.export.restore import REST, restore
from hart_edge.export.ship import bytes_of, ship
from hart_edge.runtime import Bundle, BundleError, CheckpointError, Options, Pipeline, read_certificate, read_recipe
from hart_edge.runtime.cli.app import run


def folders(root: Path) -> tuple[Path, Path]:
    return root / "runtime" / "bundled", root / "export" / "bundled"


def assert_same_checkpoint(actual: Path, expected: Path) -> None:
    """The same files; tensors equal to the last bit, all else byte by byte."""
    names = sorted(path.relative_to(expected) for path in expected.rglob("*") if path.is_file())
    assert sorted(path.relative_to(actual) for path in actual.rglob("*") if path.is_file()) == names
    for name in names:
        if name.suffix != ".safetensors":
            assert (actual / name).read_bytes() == (expected / name).read_bytes()
            continue
        got, want = load_file(actual / name), load_file(expected / name)
        assert got.keys() == want.keys()
        for key in want:
            assert got[key].dtype == torch.float16
            assert torch.equal(got[key].view(torch.int16), want[key].view(torch.int16)), key


@pytest.fixture
def exported(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle that shipping takes for a fresh export, which would cost most of a minute; a test may change it."""
    folder = Path(shutil.copytree(shipped / "runtime" / "bundled", tmp_path / "exported"))
    (folder / "accuracy.json").unlink()

    def copy(checkpoint: Checkpoint, target: Path, precision: str, **other: object) -> Bundle:
        return Bundle(shutil.copytree(folder, target))

    monkeypatch.setattr("hart_edge.export.ship.export_bundle", copy)
    return folder


def refusal(root: Path, target: Path) -> str:
    """What restoring from a package root says; nothing is left behind."""
    with pytest.raises(BundleError) as caught:
        restore(*folders(root), target)
    assert caught.value.hint
    assert not target.exists()
    return str(caught.value)


def test_checkpoint_comes_back_to_the_last_bit(shipped: Path, half_folder: Path, tmp_path: Path) -> None:
    restore(*folders(shipped), tmp_path / "restored")
    assert_same_checkpoint(tmp_path / "restored", half_folder)


def test_rest_holds_only_what_the_bundle_lacks(shipped: Path) -> None:
    keys = load_file(shipped / "export" / "bundled" / REST)
    assert {key.split(".")[0] for key in keys} == {"llm/lvl_embed", "tokenizer/vae"}
    assert {key.split(".")[1] for key in keys if key.startswith("tokenizer/")} == {"encoder", "quant_conv"}


def test_shipped_files_are_certified_and_readable_for_everybody(shipped: Path) -> None:
    assert read_certificate(shipped / "runtime" / "bundled").valid
    assert Bundle(shipped / "runtime" / "bundled").manifest.defaults == {"cfg": 3.0, "top_k": 19}
    files = [path for path in shipped.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_certificate_stays_valid_where_the_package_is_copied(shipped: Path, tmp_path: Path) -> None:
    assert read_certificate(Path(shutil.copytree(shipped / "runtime" / "bundled", tmp_path / "elsewhere"))).valid


def test_shipping_again_replaces(shipped: Path, half_folder: Path, exported: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(shipped, tmp_path / "package"))
    (root / "runtime" / "bundled" / "old.onnx").write_bytes(b"")
    (root / "export" / "bundled" / REST).unlink()
    assert ship(half_folder, root).passed
    assert not (root / "runtime" / "bundled" / "old.onnx").exists()
    restore(*folders(root), tmp_path / "restored")
    assert_same_checkpoint(tmp_path / "restored", half_folder)


def test_missing_rest(installed: Path, tmp_path: Path) -> None:
    (installed / "export" / "bundled" / REST).unlink()
    assert f"{REST} cannot be read" in refusal(installed, tmp_path / "restored")
    with pytest.raises(BundleError, match=f"{REST} is missing"):
        load_checkpoint("bundled")


def test_truncated_rest(installed: Path, tmp_path: Path) -> None:
    path = installed / "export" / "bundled" / REST
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{REST} cannot be read" in refusal(installed, tmp_path / "restored")


def test_flipped_bit_in_the_rest(installed: Path, tmp_path: Path) -> None:
    path = installed / "export" / "bundled" / REST
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "is not the one that was shipped" in refusal(installed, tmp_path / "restored")


def test_rest_of_another_bundle(installed: Path, rehash: Callable[[Path], None], tmp_path: Path) -> None:
    path = installed / "runtime" / "bundled" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "is damaged" in refusal(installed, tmp_path / "restored")
    rehash(path.parent)
    assert "belongs to another bundle" in refusal(installed, tmp_path / "restored")


@pytest.mark.parametrize("name", ["llm/config.json", "text_model/tokenizer.json", "generation_config.json"])
def test_changed_or_missing_configuration(installed: Path, tmp_path: Path, name: str) -> None:
    path = installed / "export" / "bundled" / name
    path.write_text(path.read_text() + " ")
    assert "are not those that were shipped" in refusal(installed, tmp_path / "restored")
    path.unlink()
    assert "are not those that were shipped" in refusal(installed, tmp_path / "restored")


def test_too_large_a_model_is_refused_and_nothing_written(shipped: Path, half_folder: Path, exported: Path, tmp_path: Path) -> None:
    size = bytes_of(*folders(shipped))
    with pytest.raises(BundleError, match=rf"bytes together; a package may have {size // 2}"):
        ship(half_folder, tmp_path / "package", limit=size // 2)
    assert not (tmp_path / "package").exists()


def test_model_that_fails_its_gates_is_not_shipped(
    half_folder: Path, exported: Path, rehash: Callable[[Path], None], tmp_path: Path
) -> None:
    shutil.copyfile(exported / "context.onnx", exported / "decoder.onnx")
    rehash(exported)
    assert ship(half_folder, tmp_path / "package").failed_stages() == ["engines"]
    assert not (tmp_path / "package").exists()


def test_float32_weights_and_a_missing_text_model_are_refused(checkpoint_folder: Path, half_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="are not float16"):
        ship(checkpoint_folder, tmp_path / "package")
    folder = Path(shutil.copytree(half_folder, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("text_model")))
    with pytest.raises(CheckpointError, match="no text model"):
        ship(folder, tmp_path / "package")


def test_bundled_names_the_restored_checkpoint(installed: Path, half_folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint("bundled")
    assert (checkpoint.name, checkpoint.options) == ("bundled", Options(cfg=3.0, top_k=19))
    (cached,) = (tmp_path / "cache").iterdir()
    assert_same_checkpoint(cached, half_folder)
    written = {path: path.stat().st_mtime_ns for path in cached.rglob("*")}
    load_checkpoint("bundled")
    assert {path: path.stat().st_mtime_ns for path in cached.rglob("*")} == written
    (cached / "tokenizer" / "model.safetensors").unlink()
    load_checkpoint("bundled")
    assert_same_checkpoint(cached, half_folder)


def test_folder_called_bundled_is_named_by_its_path(installed: Path, half_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(half_folder, "bundled")
    Path("bundled/generation_config.json").write_text('{"cfg": 9.0}')
    assert load_checkpoint("./bundled").options.cfg == 9.0
    assert load_checkpoint(Path("bundled")).options.cfg == 9.0
    assert load_checkpoint("bundled").options.cfg == 3.0


@pytest.mark.filterwarnings("error::hart_edge.runtime.HartWarning")
def test_pipeline_without_a_path_is_the_bundled_model_with_its_settings(installed: Path) -> None:
    with Pipeline.load(require_verified=True) as pipe:
        assert pipe.defaults == Options(cfg=3.0, top_k=19)
        own, same, published = (pipe.generate("a tree", options=o) for o in (None, Options(cfg=3.0, top_k=19), Options()))
    assert json.loads(own.info["hart-edge"])["settings"]["cfg"] == 3.0
    assert json.loads(published.info["hart-edge"])["settings"]["cfg"] == 4.5
    assert np.array_equal(np.asarray(own), np.asarray(same))
    assert not np.array_equal(np.asarray(own), np.asarray(published))


@pytest.mark.filterwarnings("error::hart_edge.runtime.HartWarning")
def test_generate_takes_what_is_not_given_from_the_model(installed: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.png"
    settings = {"cfg": 3.0, "top_k": 19, "top_p": 0.0, "smooth": True, "diffusion_steps": 8, "residual": True}
    assert run(["generate", "a tree", "-o", str(target), "--require-verified"]) == 0
    assert read_recipe(target)["settings"] == settings
    assert run(["generate", "a tree", "-o", str(target), "--cfg", "0", "--no-smooth", "--json", str(tmp_path / "o.json")]) == 0
    assert read_recipe(target)["settings"] == settings | {"cfg": 0.0, "smooth": False}
    assert json.loads((tmp_path / "o.json").read_text())["options"]["top_k"] == 19


def test_inspect_shows_the_bundled_model_and_its_settings(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect"]) == 0
    assert "cfg 3.0, top_k 19" in capsys.readouterr().out
    assert run(["inspect", "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["defaults"] == {"cfg": 3.0, "top_k": 19}
    assert facts["certificate"]["valid"] is True


def test_inspect_of_a_model_without_settings_says_so(bundle_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(bundle_root)]) == 0
    assert "as published" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::hart_edge.runtime.HartWarning")
def test_eval_judges_the_bundled_model_with_its_settings(installed: Path, tmp_path: Path) -> None:
    report = tmp_path / "scores.json"
    assert run(["eval", "--n", "1", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["options"] == vars(Options(cfg=3.0, top_k=19))
    assert run(["eval", "--n", "1", "--cfg", "2", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["options"] == vars(Options(cfg=2.0, top_k=19))
    assert open_reference("bundled")[2] == Options(cfg=3.0, top_k=19)


def test_bench_measures_the_bundled_model(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-n", "1"]) == 0
    assert str(installed / "runtime" / "bundled") in capsys.readouterr().out.replace("\n", "")


def test_verify_alone_certifies_the_bundled_model_against_its_own_checkpoint(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = installed / "runtime" / "bundled" / "accuracy.json"
    path.unlink()
    assert run(["verify"]) == 0
    assert "all gates passed" in capsys.readouterr().out
    assert read_certificate(path.parent).valid
    assert json.loads(path.read_text())["checkpoint"] == "bundled"


def test_verify_of_an_install_that_cannot_be_written_shows_the_result(
    installed: Path, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = installed / "runtime" / "bundled" / "accuracy.json"
    path.unlink()
    path.symlink_to(tmp_path / "no" / "such" / "folder" / "accuracy.json")
    for checkpoint, code, verdict in (("bundled", 0, "all gates passed"), (str(checkpoint_folder), 1, "FAILED: ")):
        assert run(["verify", "--checkpoint", checkpoint, "--json", str(tmp_path / "report.json")]) == code
        said = capsys.readouterr()
        assert verdict in said.out
        assert "installed certificate stays as it is" in said.err
        assert json.loads((tmp_path / "report.json").read_text())["passed"] is (code == 0)
    assert path.is_symlink() and not path.exists()
