"""Which groups cost what, and which fall back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hart_edge.calibration import sensitivity
from hart_edge.calibration.graphs import open_with
from hart_edge.calibration.material import Material
from hart_edge.calibration.replay import Damage, record, replay
from hart_edge.calibration.schemes import FLOAT, W8A8, WEIGHT_ONLY, scheme_of
from hart_edge.calibration.sensitivity import Row, cost, decide, keeps, read_choice
from hart_edge.export.verify.gates import QUANTIZATION, Gate, at_least
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.errors import InputError

NONE = Damage(kl=(0.0, 0.0), cosine=(1.0, 1.0), top1=(1.0, 1.0), latent=0.0, psnr=200.0)
SCHEME = scheme_of("w8a8")


def test_the_float_engines_replay_without_damage(material: Material) -> None:
    with open_with(material.bundle, {}) as pipe:
        recorded = record(pipe, ["a boat"])
        damage = replay(pipe, recorded, {"text_encoder", "transformer", "residual_step", "decoder"})
    assert max(damage.kl) == 0 and damage.latent == 0 and damage.psnr == 200 and len(damage.kl) == 6


def test_each_engine_damages_what_depends_on_it(material: Material) -> None:
    with open_with(material.bundle, {}) as pipe:
        recorded = record(pipe, ["a boat"])
    found = {}
    for group in ("transformer.layers.0.mlp", "residual_step.final", "decoder.up.1"):
        treatment = SCHEME.engines[group.partition(".")[0]]
        with material.pipeline({group: treatment}) as (pipe, changed):
            found[group] = replay(pipe, recorded, changed)
    assert max(found["transformer.layers.0.mlp"].kl) > 0
    assert max(found["residual_step.final"].kl) == 0 and found["residual_step.final"].latent > 0
    assert found["decoder.up.1"].latent == 0 and found["decoder.up.1"].psnr < 100


def test_costs_are_shares_of_the_limits() -> None:
    gates = QUANTIZATION["int8-w8a8"]
    half = replace(NONE, kl=(0.0, gates["logits KL"].limit / 2))
    assert cost(half, SCHEME) == pytest.approx(0.5) and keeps(half, SCHEME)
    assert not keeps(replace(NONE, kl=(gates["logits KL"].limit * 1.01, 0.0)), SCHEME)
    assert not keeps(replace(NONE, cosine=(1.0, 0.98)), SCHEME)
    assert cost(replace(NONE, psnr=gates["picture PSNR dB"].limit), SCHEME) == pytest.approx(1)
    assert not keeps(replace(NONE, kl=(float("nan"), 0.0)), SCHEME)


def test_the_costliest_groups_fall_back_step_by_step(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in which one group is hopeless in 8 bits and another with rounded activations only."""
    harm = {("transformer.layers.0.down", W8A8): 1.0, ("transformer.layers.0.down", WEIGHT_ONLY): 0.5, ("transformer.head", W8A8): 0.3}

    def fake(material: Material, choice: dict[str, object], *_: object) -> Damage:
        return replace(NONE, kl=(0.0, sum(value for (group, treatment), value in harm.items() if choice.get(group) is treatment)))

    monkeypatch.setattr(sensitivity, "_replay_all", fake)
    monkeypatch.setattr(sensitivity, "_alone", lambda material, group, treatment, _: fake(material, {group: treatment}))
    monkeypatch.setitem(
        QUANTIZATION, "int8-w8a8", {"logits KL": Gate(0.1), "logits cosine": at_least(0.9), "picture PSNR dB": at_least(20)}
    )
    rows = [Row(group, "w8a8", 1, fake(material, {group: W8A8})) for group in material.groups]
    choice, total, _ = decide(material, SCHEME, [], rows, lambda *_: None)
    assert choice["transformer.layers.0.down"] is FLOAT and choice["transformer.head"] is WEIGHT_ONLY
    assert choice["transformer.layers.1.down"] is W8A8 and max(total.kl) == 0


def test_the_command(bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a lighthouse\n")
    found, plot = tmp_path / "found.json", tmp_path / "found.png"
    arguments = ["sensitivity", str(bundle_root), "--prompts", str(tmp_path / "prompts.txt"), "--scheme", "weight-only"]
    assert run([*arguments, "--json", str(found), "--plot", str(plot)]) == 0
    assert "transformer.layers.1.down" in capsys.readouterr().out
    content = json.loads(found.read_text())
    assert {row["group"] for row in content["rows"]} == set(content["choice"])
    assert all(len(row["damage"]["kl"]) == 6 for row in content["rows"])
    assert content["limits"]["logits KL"].startswith("≤") and content["prompts"]["count"] == 1
    assert Image.open(plot).width > 600
    target = tmp_path / "bundle"
    command = ["calibrate", str(bundle_root), "--prompts", str(tmp_path / "prompts.txt"), "--scheme", "weight-only", "-o", str(target)]
    assert run([*command, "--sensitivity", str(found)]) == 0
    assert json.loads((target / "manifest.json").read_text())["quantization"]["groups"] == content["choice"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "fp8"}, "is for scheme fp8; expected scheme w8a8"),
        ({"transformer__head": "fp8"}, "group transformer.head is to be fp8; scheme w8a8 knows w8a8, weight-only, float there"),
        ({"encoder__head": "float"}, "is for another model: group encoder.head"),
        ({"transformer__head": "int4"}, "is no sensitivity file: KeyError: 'int4'"),
    ],
)
def test_choices_that_do_not_fit(change: dict[str, str], message: str, material: Material, choice: Callable[..., Path]) -> None:
    scheme = change.pop("scheme", None)
    path = choice("w8a8", **change)
    if scheme:
        path.write_text(path.read_text().replace('"w8a8", "choice"', f'"{scheme}", "choice"'))
    with pytest.raises(InputError) as error:
        read_choice(path, SCHEME, material.groups)
    assert message in str(error.value)


def test_an_unwritable_plot(bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a lighthouse\n")
    command = ["sensitivity", str(bundle_root), "--prompts", str(tmp_path / "prompts.txt"), "--plot", str(tmp_path / "absent" / "x.png")]
    assert run(command) == 2
    assert "cannot write" in capsys.readouterr().err
