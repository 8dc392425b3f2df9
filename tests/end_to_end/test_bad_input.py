"""Bad input at the command line: one clear message, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hart_edge.runtime.cli.app import run

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must end with exit code 2 and leave no file; returns its message."""

    def check(*arguments: str, code: int = 2) -> str:
        before = {path for path in tmp_path.rglob("*")}
        assert run(list(arguments)) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        assert {path for path in tmp_path.rglob("*")} == before
        return " ".join(captured.err.split())

    return check


@pytest.fixture
def generate(refused: Refused, bundle_root: Path, tmp_path: Path) -> Refused:
    """`generate` with the right bundle and a right output, and something else wrong."""

    def check(*arguments: str) -> str:
        given = list(arguments)
        given += [] if "--bundle" in given else ["--bundle", str(bundle_root)]
        given += [] if "-o" in given else ["-o", str(tmp_path / "out.png")]
        return refused("generate", *given)

    return check


def test_no_bundle_given_and_none_in_this_install(refused: Refused, bare_install: Path) -> None:
    for command in (["generate", "a tree"], ["inspect"], ["bench"], ["eval"], ["verify"], ["verify", "--checkpoint", "bundled"]):
        message = refused(*command)
        assert str(bare_install) in message and "Install hart-edge again" in message and "hart-edge export" in message


def test_bundled_checkpoint_of_an_install_that_has_none(refused: Refused, bare_install: Path, bundle_root: Path, tmp_path: Path) -> None:
    for command in (["verify", str(bundle_root)], ["eval"]):
        assert "Install hart-edge again" in refused(*command, "--checkpoint", "bundled")
    assert "Install hart-edge again" in refused("export", "bundled", "-o", str(tmp_path / "b"))


def test_bundle_that_does_not_exist(generate: Refused, tmp_path: Path) -> None:
    message = generate("a tree", "--bundle", str(tmp_path / "nowhere"))
    assert "does not exist" in message and "hart-edge export" in message


def test_bundle_of_another_schema(generate: Refused, bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    message = generate("a tree", "--bundle", str(bundle_copy))
    assert "schema 99" in message and "schema 1" in message


def test_missing_engine_file(generate: Refused, bundle_copy: Path) -> None:
    (bundle_copy / "decoder.onnx").unlink()
    assert "decoder.onnx is missing" in generate("a tree", "--bundle", str(bundle_copy))


@pytest.mark.parametrize("name", ["transformer.onnx", "weights.safetensors", "tokenizer.json"])
def test_truncated_file(generate: Refused, bundle_copy: Path, name: str) -> None:
    path = bundle_copy / name
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{name} has {path.stat().st_size} bytes" in generate("a tree", "--bundle", str(bundle_copy))


@pytest.mark.parametrize("name", ["transformer.onnx", "weights.safetensors"])
def test_flipped_bit(generate: Refused, bundle_copy: Path, name: str) -> None:
    data = bytearray((bundle_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_copy / name).write_bytes(data)
    assert f"{name} has another SHA-256" in generate("a tree", "--bundle", str(bundle_copy))


@pytest.mark.parametrize("cut", [10, 1000])
def test_damaged_engine_whose_hash_was_updated(generate: Refused, bundle_copy: Path, rehash: Callable[[Path], None], cut: int) -> None:
    path = bundle_copy / "decoder.onnx"
    path.write_bytes(path.read_bytes()[cut:])
    rehash(bundle_copy)
    assert "engine decoder does not load" in generate("a tree", "--bundle", str(bundle_copy))


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "C:\\weights.onnx"])
def test_manifest_path_that_leaves_the_folder(generate: Refused, bundle_copy: Path, name: str) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    assert "leaves the bundle folder" in generate("a tree", "--bundle", str(bundle_copy))


def test_output_folder_that_does_not_exist(generate: Refused, tmp_path: Path) -> None:
    assert "cannot write" in generate("a tree", "-o", str(tmp_path / "no" / "out.png"))


def test_output_that_is_a_folder(generate: Refused, tmp_path: Path) -> None:
    assert "is a folder" in generate("a tree", "-o", str(tmp_path))


def test_output_below_a_file(generate: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in generate("a tree", "-o", str(tmp_path / "file" / "out.png"))


@pytest.mark.parametrize("seed", ["-1", str(2**64), str(2**65)])
def test_seed_outside_64_bits(generate: Refused, seed: str) -> None:
    message = generate("a tree", "--seed", seed)
    assert seed in message and "64 bits" in message


def test_largest_seed_is_legal_but_a_batch_beyond_it_is_not(generate: Refused, bundle_root: Path, tmp_path: Path) -> None:
    assert "64 bits" in generate("a tree", "--seed", str(2**64 - 1), "--batch", "2")
    assert run(["generate", "a tree", "--bundle", str(bundle_root), "-o", str(tmp_path / "o.png"), "--seed", str(2**64 - 1)]) == 0


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--cfg", "-1", "cfg is -1"),
        ("--cfg", "nan", "cfg is nan"),
        ("--cfg", "inf", "cfg is inf"),
        ("--top-k", "0", "top-k is 0"),
        ("--top-p", "1.5", "top-p is 1.5"),
        ("--diffusion-steps", "0", "diffusion steps is 0"),
        ("--diffusion-steps", "1001", "1 to 1000"),
        ("--batch", "0", "batch is 0"),
        ("--backend", "abacus", "expected one of auto"),
        ("--seed", "one", "'--seed'"),
    ],
)
def test_option_out_of_range(generate: Refused, option: str, value: str, expected: str) -> None:
    assert expected in generate("a tree", option, value)


def test_nul_in_a_prompt(generate: Refused) -> None:
    assert "NUL character at position 2" in generate("a \0tree")


def test_preview_folder_that_is_a_file(generate: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "preview folder" in generate("a tree", "--preview-dir", str(tmp_path / "file"))


def test_full_disk_while_the_picture_is_written(generate: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left on device" in generate("a tree")


def test_bundle_without_text_encoder(generate: Refused, bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    del manifest["engines"]["text_encoder"]
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest | {"text": None}))
    assert "--text-model" in generate("a tree", "--bundle", str(bundle_copy))


def test_export_of_nothing(refused: Refused, tmp_path: Path) -> None:
    assert "neither a folder nor a model-hub name" in refused("export", str(tmp_path / "nowhere"), "-o", str(tmp_path / "b"))


def test_export_over_something_that_is_no_bundle(refused: Refused, checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert "is no bundle" in refused("export", str(checkpoint_folder), "-o", str(tmp_path), "--overwrite")


def test_export_with_an_unknown_precision(refused: Refused, checkpoint_folder: Path, tmp_path: Path) -> None:
    assert "'int3'" in refused("export", str(checkpoint_folder), "-o", str(tmp_path / "b"), "--precision", "int3")


def test_verify_needs_something_to_verify(refused: Refused, bundle_root: Path, tmp_path: Path) -> None:
    assert "either a bundle folder or --golden" in refused("verify", str(bundle_root), "--golden", str(tmp_path))
    assert "--checkpoint" in refused("verify", str(bundle_root))
    assert "is no folder" in refused("verify", "--golden", str(tmp_path / "nowhere"))


def test_verify_with_an_empty_or_binary_prompts_file(refused: Refused, bundle_root: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    for content, expected in ((b"\n \n", "holds no prompts"), (b"\xff\xfe\x00", "UTF-8"), (b"a\0b", "NUL")):
        prompts.write_bytes(content)
        assert expected in refused("verify", str(bundle_root), "--checkpoint", str(checkpoint_folder), "--prompts", str(prompts))


def test_verify_golden_of_a_folder_that_is_none(refused: Refused, tmp_path: Path) -> None:
    assert "config.json" in refused("verify", "--golden", str(tmp_path), "--json", str(tmp_path / "r.json"))


def test_unknown_command_and_option(refused: Refused) -> None:
    assert "No such command" in refused("paint")
    assert "No such option" in refused("generate", "a tree", "--colour")


def test_interrupt_in_the_middle(bundle_root: Path, tmp_path: Path) -> None:
    """A real Ctrl-C, sent when the second preview is there: message, exit code 130, no half-written file."""
    previews, target = tmp_path / "previews", tmp_path / "out.png"
    command = "from hart_edge.runtime.cli import main; main()"
    arguments = ["generate", "a tree", "--batch", "64", "--bundle", str(bundle_root), "-o", str(target), "--preview-dir", str(previews)]
    process = subprocess.Popen([sys.executable, "-c", command, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(previews.glob("scale-01-*.png")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cancelled" in message and "Traceback" not in message
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.rglob(".hart-edge-*"))
