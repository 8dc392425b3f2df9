"""The list of calibration prompts."""

from __future__ import annotations

import subprocess
import sys

from hart_edge.export.evaluate import held_out_prompts
from hart_edge.export.shapes.captions import parse
from hart_edge.export.shapes.prompts import training_prompts


def test_a_longer_list_begins_with_the_shorter_and_every_line_can_be_read() -> None:
    prompts = training_prompts(40)
    assert prompts[:8] == training_prompts(8)
    assert len(set(prompts)) > 30 and all(parse(prompt) is not None for prompt in prompts)
    assert not set(prompts) & {prompt.text for prompt in held_out_prompts(100)}


def test_the_command() -> None:
    command = [sys.executable, "-m", "hart_edge.export.shapes.prompts"]
    done = subprocess.run([*command, "3"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == training_prompts(3)
    assert "usage" in subprocess.run([*command, "0"], capture_output=True, text=True, timeout=60, check=False).stderr
