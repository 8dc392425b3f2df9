"""`hart-edge compare`: the report and its numbers."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hart_edge.export.bench import Source
from hart_edge.export.compare.facts import Asked
from hart_edge.export.compare.page import render
from hart_edge.export.compare.perceptual import gmsd
from hart_edge.export.compare.pictures import Drawings, difference, distances
from hart_edge.export.compare.series import series
from hart_edge.export.verify import Check
from hart_edge.runtime import Bundle
from hart_edge.runtime.certificate import read_certificate
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.errors import InputError


class Page(HTMLParser):
    """Headings, sources of pictures, and tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [given["src"] or ""] if "src" in given else []
        assert "href" not in given and tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture(scope="module")
def report(
    bundle_root: Path, w8a8_root: Path, checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], Path]:
    """The page, its numbers, and the quantised bundle that was compared."""
    folder = tmp_path_factory.mktemp("compare")
    copy = Path(shutil.copytree(w8a8_root, folder / "int8"))
    float_copy = Path(shutil.copytree(bundle_root, folder / "fp32"))
    (folder / "prompts.txt").write_text("a boat at sea\na lighthouse <at> dusk\n")
    page, numbers = folder / "report.html", folder / "report.json"
    command = ["compare", str(float_copy), str(copy), "--checkpoint", str(checkpoint_folder), "--prompts", str(folder / "prompts.txt")]
    assert run([*command, "-o", str(page), "--json", str(numbers), "--runs", "0", "--grid", "1", "--backend", "cpu"]) == 0
    return page, json.loads(numbers.read_text()), copy


def test_numbers_of_every_bundle(report: tuple[Path, dict[str, Any], Path]) -> None:
    _, numbers, _ = report
    assert list(numbers["bundles"]) == ["fp32", "int8"]
    exact, rough = numbers["bundles"]["fp32"], numbers["bundles"]["int8"]
    for row in (exact, rough):
        assert len(row["series"]["logits KL"]) == 6 and len(row["series"]["diffusion error"]) == 8
        assert row["passed"] and row["gates"]
    assert rough["bytes"] < 0.4 * exact["bytes"] and rough["quantization"]["scheme"] == "w8a8"
    assert max(exact["series"]["logits KL"]) < 1e-9 < max(rough["series"]["logits KL"])
    assert exact["series"]["first flip"] is None and exact["series"]["token agreement"] == 1
    assert exact["pictures"]["PSNR dB"] > 60 > rough["pictures"]["PSNR dB"]
    assert exact["pictures"]["GMSD"] < 0.001


def test_one_file_that_needs_no_other(report: tuple[Path, dict[str, Any], Path]) -> None:
    page = Page(report[0].read_text())
    assert not page.open
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert len([s for s in page.sources if "jpeg" in s]) == 1 + 2 * 2  # one prompt: reference, two bundles with a difference each
    assert "all gates passed" in page.text and "Verdict per gate" in page.text and "transformer.layers.0.down" in page.text
    assert report[0].stat().st_size < 500_000
    assert not re.search(r"url\(|@import|https?://", report[0].read_text())


def test_certificates_come_from_the_same_run(report: tuple[Path, dict[str, Any], Path]) -> None:
    certificate = read_certificate(report[2])
    assert certificate.valid and certificate.report["prompts"] == ["a boat at sea", "a lighthouse <at> dusk"]
    gates = {check["metric"]: check["gate"] for check in certificate.report["checks"]}
    assert gates["logits cosine"] == "≥ 0.99"


def test_a_page_with_times_scores_and_failures(report: tuple[Path, dict[str, Any], Path]) -> None:
    numbers = json.loads(json.dumps(report[1]))
    time = {"stages": {"transformer": 0.2, "decoder": 0.1}, "seconds": 0.31, "peak_memory_bytes": 2**28}
    numbers["reference"]["time"], numbers["scored"], numbers["runs"] = time, 20, 3
    numbers["failed"], numbers["alone"] = {"int8": "a measured process died."}, ["fp32"]
    numbers["bundles"]["fp32"]["time"] = time
    numbers["bundles"]["int8"]["passed"] = False
    for row in numbers["bundles"].values():
        row["score"] = {"colour": 0.95, "shape": 0.9, "count": 0.9, "relation": None, "all_correct": 0.85}
    numbers["bundles"]["int8"]["gates"][0] |= {"passed": False, "value": "nan"}
    pixels = np.zeros((32, 32, 3), np.uint8)
    page = Page(render(numbers, Drawings([pixels] * 2, {"fp32": [pixels] * 2, "int8": [pixels] * 2})))
    assert "(1.00)" in page.text and "int8 was not timed: a measured process died." in page.text
    assert "fp32 did not run beside the others and was timed after them, alone." in page.text
    assert "gates FAILED" in page.text and "85.0" in page.text and "nan" in page.text
    assert "a lighthouse <at> dusk" in page.text  # escaped in the source


def test_gmsd_is_zero_for_equal_pictures_and_grows_with_noise() -> None:
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (33, 47, 3)).astype(np.uint8)
    noisy = [np.clip(picture + generator.normal(0, s, picture.shape), 0, 255).astype(np.uint8) for s in (4, 16, 64)]
    found = [gmsd(other, picture) for other in noisy]
    assert gmsd(picture, picture) == 0 and found == sorted(found) and found[0] > 0
    assert gmsd(np.full_like(picture, 200), np.full_like(picture, 10)) == 0  # it sees structure, not brightness


def test_distances_and_differences() -> None:
    black, grey = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 16, np.uint8)
    assert distances([black], [black]) == {"PSNR dB": 100.0, "SSIM": 1.0, "GMSD": 0.0}
    assert distances([grey], [black])["PSNR dB"] == pytest.approx(-20 * np.log10(16 / 255))
    assert (difference(grey, black) == 255 - 64).all() and (difference(black, black) == 255).all()


def test_curves_of_several_prompts() -> None:
    def check(metric: str, where: str, value: float, stage: str = "transformer") -> Check:
        return Check(stage, "teacher-forced", metric, where, value)

    found = series(
        [
            check("logits KL", "scale 0", 1.0),
            check("logits KL", "scale 10", 5.0),
            check("logits KL", "scale 0", 3.0),
            check("logits cosine", "scale 0", 0.9),
            check("logits cosine", "scale 0", 0.8),
            check("flip gap", "first flip at scale 7", 0.1, "pipeline"),
            check("flip gap", "first flip at scale 3", 0.1, "pipeline"),
            check("flip gap", "no flip", 0.0, "pipeline"),
        ],
        11,
    )
    assert found["logits KL"] == [2.0, 5.0] and found["logits cosine"] == [0.8]
    assert found["first flip"] == 3 and found["token agreement"] is None


def test_what_cannot_be_compared(bundle_root: Path, tmp_path: Path) -> None:
    bundle, source = Bundle(bundle_root), Source("x")
    twin = Bundle(shutil.copytree(bundle_root, tmp_path / bundle_root.name))
    with pytest.raises(InputError, match="two bundles have the same folder name"):
        Asked((bundle, twin), source, ("a",))
    with pytest.raises(InputError, match="no prompts to compare with"):
        Asked((bundle,), source, ())
    with pytest.raises(InputError, match="runs is -1"):
        Asked((bundle,), source, ("a",), runs=-1)


def test_bad_arguments(bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("a boat\n")
    command = ["compare", str(bundle_root), "--checkpoint", "x", "--prompts", str(tmp_path / "p.txt")]
    for arguments, message in (
        (["-o", str(tmp_path / "absent" / "r.html")], "cannot write"),
        (["-o", str(tmp_path / "r.html"), "--grid", "-1"], "grid is -1"),
        (["-o", str(tmp_path / "r.html"), "--backend", "tpu"], "backend 'tpu' is unknown"),
    ):
        assert run([*command, *arguments]) == 2
        assert message in capsys.readouterr().err
