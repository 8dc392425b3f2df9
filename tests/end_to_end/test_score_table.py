"""The score table as a command: on a bundle, on a checkpoint, cancelled, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hart_edge.export.evaluate import table
from hart_edge.export.evaluate.sweep import RENDERER
from hart_edge.runtime import Options

NUMBERS = ["--n", "3", "--cfg", "1.5", "--steps", "", "--top-k", "2"]
pytestmark = pytest.mark.filterwarnings("ignore::hart_edge.runtime.HartWarning")  # sixteen tokens are few


def test_command_on_a_bundle_writes_goes_on_and_refuses(bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.json"
    table.main([str(bundle_root), *NUMBERS, "--json", str(path)])
    first, content = capsys.readouterr(), json.loads(path.read_text())
    names = [line.split("|")[1].strip() for line in first.out.splitlines() if line.startswith("|")][2:]
    assert names == [RENDERER, "the model's own: cfg 4.5, 8 steps", "cfg 1.5", "no residual", "no smooth sampling", "top-k 2"]
    assert all(line.endswith("| - |") for line in first.out.splitlines()[4:])
    assert [row["setting"] for row in content["rows"]] == names
    assert "prompts" not in content["rows"][1] and content["n"] == 3
    table.main([str(bundle_root), *NUMBERS, "--json", str(path)])
    assert capsys.readouterr().out == first.out and json.loads(path.read_text()) == content
    with pytest.raises(SystemExit) as caught:
        table.main([str(bundle_root), *NUMBERS, "--seed", "1", "--json", str(path)])
    assert caught.value.code == 2 and "seed 0, here 1" in capsys.readouterr().err


def test_command_on_a_checkpoint_scores_the_reference(
    bundle_root: Path, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, numbers = {}, ["--n", "2", "--cfg", "", "--steps", "", "--top-k", ""]
    for name, source in (("bundle", [str(bundle_root)]), ("reference", ["--checkpoint", str(checkpoint_folder), "--batch", "3"])):
        table.main([*source, *numbers, "--json", str(tmp_path / name)])
        rows[name] = json.loads((tmp_path / name).read_text())["rows"]
    assert rows["bundle"] == rows["reference"]
    with pytest.raises(SystemExit):
        table.main(["--checkpoint", str(checkpoint_folder), *numbers, "--json", str(tmp_path / "bundle")])
    assert "holds another table: model" in capsys.readouterr().err


def test_cancelled_command_ends_with_130(bundle_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(prompts: list[str], seeds: list[int], options: Options) -> list[np.ndarray]:
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "engine_painter", lambda pipe: interrupted)
    with pytest.raises(SystemExit) as caught:
        table.main([str(bundle_root), *NUMBERS])
    assert caught.value.code == 130 and "cancelled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a", "--checkpoint", "b"], "not both"),
        (["a", "--n", "0"], "n is 0"),
        (["a", "--batch", "0"], "batch is 0"),
        (["a", "--seed", "-1"], "seed is -1"),
        (["a", "--top-k", "20,0"], "top-k is 0"),
        (["a", "--json", "/nowhere/at/all.json"], "cannot write"),
        (["nowhere"], "does not exist"),
        (["a", "--cfg", "x,1"], "invalid list of float value: 'x,1'"),
        (["a", "--steps", "1.5"], "invalid list of int value: '1.5'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_command_refuses_what_it_cannot_do(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        table.main(arguments)
    assert caught.value.code == 2 and named in capsys.readouterr().err
