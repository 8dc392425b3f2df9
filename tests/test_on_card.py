"""The script that runs all that needs a card: its commands are those that there are, and no step stops the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from on_card import ROOT, Step, run, steps, table


def python(code: str, seconds: int = 60) -> Step:
    return Step("step", seconds, (sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("step", "ending", "last"),
    [
        (python("print('first'); print('42 ms')"), "passed", "42 ms"),
        (python("import sys; print('why', file=sys.stderr); sys.exit(3)"), "failed, exit 3", "why"),
        (python("import time; print('slow', flush=True); time.sleep(60)", seconds=2), "took more than 2 s", "slow"),
        (Step("step", 5, ("no-such-program",)), "did not start: No such file or directory", ""),
    ],
)
def test_every_ending(step: Step, ending: str, last: str, tmp_path: Path) -> None:
    outcome = run(step, tmp_path)
    assert (outcome.ending, outcome.last) == (ending, last)
    assert last in (tmp_path / "step.txt").read_text()
    assert table([outcome]).row_count == 1


def test_all_files_and_options_exist(tmp_path: Path) -> None:
    """Scripts know the options that they are given; tests are where they are looked for."""
    for step in steps(tmp_path):
        assert all((ROOT / word).is_dir() for word in step.command if word.startswith("tests/")), step.name
        scripts = [word for word in step.command if word.endswith(".py")]
        for script in scripts:
            text = Path(script).read_text()
            options = [word for word in step.command if word.startswith("--")]
            assert all(f'"{option}"' in text for option in options), step.name


def test_an_unknown_step_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "on_card.py"), "--list", "--only"]
    done = subprocess.run([*command, "kernel"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and "no step kernel; there are kernels, fused" in done.stderr
    listed = subprocess.run([*command, "kernels"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert listed.stdout.startswith("kernels: ") and list(tmp_path.iterdir()) == []
