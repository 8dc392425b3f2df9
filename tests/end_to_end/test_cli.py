"""The commands, as a user types them, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from hart_edge.runtime import read_recipe
from hart_edge.runtime.cli.app import run


def test_generate_writes_a_png_with_its_recipe(bundle_root: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    assert run(["generate", "a lighthouse at dusk", "--bundle", str(bundle_root), "-o", str(target), "--seed", "4"]) == 0
    recipe = read_recipe(target)
    assert (recipe["prompt"], recipe["seed"], recipe["settings"]["cfg"]) == ("a lighthouse at dusk", 4, 4.5)
    assert Image.open(target).info["Description"] == "a lighthouse at dusk"


def test_generate_batch_json_and_previews(bundle_root: Path, tmp_path: Path) -> None:
    report, previews = tmp_path / "made.json", tmp_path / "previews"
    arguments = ["generate", "a tree", "a boat", "--batch", "2", "--bundle", str(bundle_root), "-o", str(tmp_path / "p.png")]
    assert run([*arguments, "--json", str(report), "--preview-dir", str(previews)]) == 0
    assert sorted(path.name for path in tmp_path.glob("p-*.png")) == [f"p-{k}.png" for k in range(4)]
    made = json.loads(report.read_text())
    assert [(image["prompt"], image["seed"]) for image in made["images"]] == [("a tree", 0), ("a tree", 1), ("a boat", 2), ("a boat", 3)]
    assert set(made["seconds"]) >= {"transformer", "decoder"}
    assert len(list(previews.iterdir())) == 6 * 4


def test_generate_json_on_standard_output_is_nothing_but_json(
    bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "a tree", "--bundle", str(bundle_root), "-o", str(tmp_path / "o.png"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["smooth"] is True


def test_batch_on_the_command_line_equals_single_pictures(bundle_root: Path, tmp_path: Path) -> None:
    common = ["generate", "a tree", "--bundle", str(bundle_root)]
    run([*common, "--batch", "2", "--seed", "8", "-o", str(tmp_path / "both.png")])
    run([*common, "--seed", "9", "-o", str(tmp_path / "one.png")])
    assert Image.open(tmp_path / "both-1.png").tobytes() == Image.open(tmp_path / "one.png").tobytes()


def test_options_reach_the_recipe(bundle_root: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.png"
    options = ["--cfg", "2", "--top-k", "50", "--top-p", "0.9", "--no-smooth", "--diffusion-steps", "4", "--no-residual"]
    assert run(["generate", "a tree", "--bundle", str(bundle_root), "-o", str(target), *options]) == 0
    assert read_recipe(target)["settings"] == {
        "cfg": 2.0,
        "top_k": 50,
        "top_p": 0.9,
        "smooth": False,
        "diffusion_steps": 4,
        "residual": False,
    }


def test_verify_certifies_a_bundle_and_inspect_shows_it(
    bundle_copy: Path, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, report = tmp_path / "prompts.txt", tmp_path / "report.json"
    prompts.write_text("a tree\n\nשלום 🌅\n", encoding="utf-8")
    arguments = ["--checkpoint", str(checkpoint_folder), "--prompts", str(prompts), "--json", str(report)]
    assert run(["verify", str(bundle_copy), *arguments]) == 0
    assert "all gates passed" in capsys.readouterr().out
    certificate = json.loads((bundle_copy / "accuracy.json").read_text())
    assert certificate == json.loads(report.read_text())
    assert (certificate["passed"], certificate["prompts"]) == (True, ["a tree", "שלום 🌅"])
    assert run(["inspect", str(bundle_copy), "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["certificate"]["valid"] is True
    assert facts["image_size"] == 128
    assert run(["generate", "a tree", "--bundle", str(bundle_copy), "--require-verified", "-o", str(tmp_path / "o.png")]) == 0


def test_failed_verification_exits_1_and_the_bundle_is_refused(
    bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hart_edge.export.random_checkpoint import SIZES, make_checkpoint

    other = make_checkpoint(tmp_path / "other", SIZES["tiny"], seed=1)
    assert run(["verify", str(bundle_copy), "--checkpoint", str(other)]) == 1
    assert "FAILED: constants, text_encoder" in capsys.readouterr().out
    assert run(["generate", "a tree", "--bundle", str(bundle_copy), "--require-verified", "-o", str(tmp_path / "o.png")]) == 2
    assert "verification FAILED" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_uncertified_bundle_warns_and_is_refused_on_request(
    bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    arguments = ["generate", "a tree", "--bundle", str(bundle_root), "-o", str(tmp_path / "o.png")]
    assert run(arguments) == 0
    assert any("not verified" in str(warning.message) for warning in recwarn)
    assert run([*arguments, "--require-verified"]) == 2
    assert "hart-edge verify" in capsys.readouterr().err


@pytest.mark.slow
def test_verify_golden_works_in_any_folder(
    golden_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["verify", "--golden", str(golden_folder)]) == 0
    report = json.loads((tmp_path / "accuracy.json").read_text())
    assert report["passed"] and report["recording"] == "B_argmax"
    assert "free-running" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]


@pytest.mark.slow
def test_export_makes_a_bundle_that_draws(checkpoint_folder: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "system.txt"
    prompt.write_text("Write an enhanced prompt.")
    bundle = tmp_path / "bundle"
    assert run(["export", str(checkpoint_folder), "-o", str(bundle), "--precision", "fp16", "--system-prompt", str(prompt)]) == 0
    assert run(["generate", "a tree", "--bundle", str(bundle), "-o", str(tmp_path / "o.png")]) == 0
    assert read_recipe(tmp_path / "o.png")["precision"] == "fp16"
    assert run(["verify", str(bundle), "--checkpoint", str(checkpoint_folder)]) == 2, "the system prompt is missing"
    assert run(["verify", str(bundle), "--checkpoint", str(checkpoint_folder), "--system-prompt", str(prompt)]) == 0


def test_bench_compares_with_the_reference(
    bundle_root: Path, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # PyTorch's threads wait for each other longer than they work on such small tensors
    target, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    reference = ["--compare", "torch-eager", "--checkpoint", str(checkpoint_folder)]
    assert run(["bench", str(bundle_root), "-n", "2", "--backend", "cpu", *reference, "--json", str(target), "--plot", str(plot)]) == 0
    report = json.loads(target.read_text())
    (now,) = report["rounds"]
    assert list(now["contenders"]) == ["torch-eager", "cpu"] and now["failed"] == {}
    for result in now["contenders"].values():
        assert len(result["runs"]) == 2
        assert result["tokens"] == sum(p * p for p in (1, 2, 3, 4, 6, 8))
        assert set(result["stages"]) == set(now["flops"])
        assert 0 < result["peak_memory_bytes"] < 2**33
    assert now["contenders"]["cpu"]["peak_memory_bytes"] < now["contenders"]["torch-eager"]["peak_memory_bytes"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_runs_several_batch_sizes(bundle_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(bundle_root), "-n", "1", "--backend", "cpu", "--batch", "1,2", "--json", "-"]) == 0
    rounds = json.loads(capsys.readouterr().out)["rounds"]
    assert [(now["batch"], now["contenders"]["cpu"]["pictures"]) for now in rounds] == [(1, 1), (2, 2)]


def test_bench_needs_the_checkpoint_of_a_bundle_to_compare_it(bundle_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(bundle_root), "--compare", "torch"]) == 2
    assert "--checkpoint" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")
def test_bench_compares_everything_on_a_gpu(bundle_root_fp16: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    reference = ["--compare", "torch", "--checkpoint", str(checkpoint_folder)]
    assert run(["bench", str(bundle_root_fp16), "-n", "2", "--batch", "1,2", *reference, "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["product_rate"] > 1e12
    for now in report["rounds"]:
        assert set(now["contenders"]) >= {"torch-eager", "torch-compiled", "cuda"}, now["failed"]
        assert now["against"] == "torch-compiled"
        assert set(now["floor"]) == set(now["contenders"]["cuda"]["stages"])
        for name, result in now["contenders"].items():
            assert result["peak_device_bytes"] > 2**20, name
            assert sum(result["stages"].values()) <= result["seconds"]


def test_bench_reports_an_error_of_the_measured_process(bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle_copy / "decoder.onnx").unlink()
    assert run(["bench", str(bundle_copy), "-n", "1"]) == 2
    assert "decoder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["generate"], ["export"], ["verify"], ["inspect"], ["bench"]])
def test_help_is_there_for_every_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert "Usage: hart-edge" in capsys.readouterr().out
