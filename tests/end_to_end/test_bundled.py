"""The model that the package brings: small, certified, restorable, and it draws what it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hart_edge.export import restore
from hart_edge.export.checkpoint import load_checkpoint
from hart_edge.export.shapes.captions import parse
from hart_edge.export.shapes.judge import read, score
from hart_edge.export.ship import LIMIT, bytes_of
from hart_edge.export.verify import verify_bundle
from hart_edge.runtime import Bundle, read_certificate
from hart_edge.runtime.bundle import bundled_folder

PROMPT = "two red circles above a blue square"


def test_it_draws_the_prompt_without_a_warning(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    command = "from hart_edge.runtime.cli import main; main()"
    arguments = ["generate", PROMPT, "--seed", "0", "--require-verified", "-o", str(target)]
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert score(read(np.asarray(Image.open(target))), parse(PROMPT)).all_correct


def test_it_is_certified_and_undamaged() -> None:
    bundle = Bundle(bundled_folder())
    assert read_certificate(bundle.root).valid
    assert bundle.manifest.precision == "fp16"


def test_it_fits_into_a_package() -> None:
    assert bytes_of(bundled_folder(), restore.PACKAGE / "bundled") <= LIMIT == 24_000_000


def test_its_checkpoint_is_restored_and_the_reference_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "user_cache_path", lambda *_, **__: tmp_path)
    checkpoint = load_checkpoint("bundled")
    assert checkpoint.defaults == Bundle(bundled_folder()).manifest.defaults
    report = verify_bundle(Bundle(bundled_folder()), checkpoint, [PROMPT])
    assert report.failures() == []
