"""Everything that only a machine with an NVIDIA GPU can show, in one go: tests, sanitizer, measurements, scores.

    python tests/on_card.py -o FOLDER [--only kernels,fused] [--list]

Every step is a command of its own, with its output in FOLDER/NAME.txt and its figures in FOLDER/NAME.json. One that fails or takes
too long does not keep the others from running. The table of results comes last; exit code 1 when a step failed. What several steps
need, a bundle of the released sizes with random weights, is made by the first of them in FOLDER/random. For the recorded runs,
HART_EDGE_GOLDEN_BUNDLES names a folder of their fp32 bundles.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(__file__).parent / "fused"
HART_EDGE = ("-c", "import sys; from hart_edge.runtime.cli import main; main(sys.argv[1:])")
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no", "--tool")


@dataclass(frozen=True)
class Step:
    """A command; seconds: that it may take."""

    name: str
    seconds: int
    command: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a step ended, in a word or two, and its last line."""

    step: Step
    ending: str
    seconds: float
    last: str


def steps(folder: Path) -> list[Step]:
    """All of them, the quick ones first."""
    python, random = sys.executable, str(folder / "random")

    def tests(*words: str) -> tuple[str, ...]:
        return (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", *words)

    def script(name: str, *words: str) -> tuple[str, ...]:
        return (python, str(SCRIPTS / name), *words)

    def figures(name: str) -> tuple[str, str]:
        return ("--json", str(folder / f"{name}.json"))

    small = tests("gpu and sanitizer", "-k", "cuda-python", "tests/plugins")
    return [
        Step("kernels", 300, tests("gpu", "tests/plugins", "tests/cuda")),
        Step("fused", 600, tests("gpu", "tests/fused")),
        Step("ort-cuda", 300, tests("gpu", "tests/ort_cuda")),
        Step("memcheck", 400, (*SANITIZER, "memcheck", *small)),
        Step("racecheck", 600, (*SANITIZER, "racecheck", *small)),
        Step("bandwidth", 200, (python, "-m", "hart_edge.plugins.bench", *figures("bandwidth"))),
        Step("picture", 300, script("bench_random.py", "--bundle", random, "--precision", "both", *figures("picture"))),
        Step("many", 200, script("bench_random.py", "--bundle", random, "--runs", "200", *figures("many"))),
        Step("batch", 300, script("bench_random.py", "--bundle", random, "--batch", "8", *figures("batch"))),
        Step("low-vram", 200, script("bench_random.py", "--bundle", random, "--low-vram", *figures("low-vram"))),
        Step("fp8-products", 200, script("bench_fp8.py", *figures("fp8-products"))),
        Step("attention", 200, script("bench_attention.py", *figures("attention"))),
        Step("profile", 200, script("profile_picture.py", "--bundle", f"{random}/fp16", *figures("profile"))),
        Step("start", 200, script("first_picture.py", "--bundle", f"{random}/fp16", *figures("start"))),
        Step("score", 900, (python, *HART_EDGE, "eval", "--n", "500", "--backend", "cuda", *figures("score"))),
        Step("score-ort", 900, (python, *HART_EDGE, "eval", "--n", "500", "--backend", "ort-cuda", *figures("score-ort"))),
        Step("score-fp8", 1500, script("score_fp8.py", *figures("score-fp8"))),
    ]


def run(step: Step, folder: Path) -> Outcome:
    """Run a step to its end; what it prints goes to its file as it comes."""
    output, begun = folder / f"{step.name}.txt", time.monotonic()
    with output.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=step.seconds, check=False)
            ending = "passed" if done.returncode == 0 else f"failed, exit {done.returncode}"
        except subprocess.TimeoutExpired:
            ending = f"took more than {step.seconds} s"
        except OSError as error:
            ending = f"did not start: {error.strerror}"
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return Outcome(step, ending, time.monotonic() - begun, lines[-1] if lines else "")


def table(outcomes: Iterable[Outcome]) -> Table:
    made = Table(title="on this card", title_justify="left")
    for name in ("step", "ended", "s", "last line"):
        made.add_column(name, justify="right" if name == "s" else "left", overflow="fold")
    for outcome in outcomes:
        made.add_row(outcome.step.name, outcome.ending, f"{outcome.seconds:.0f}", escape(outcome.last[:100]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("on-card"))
    parser.add_argument("--only", default="", help="names of steps, with commas between them")
    parser.add_argument("--list", action="store_true", help="print the commands and do nothing")
    asked = parser.parse_args()
    every = steps(asked.output.resolve())
    names = [name for name in asked.only.split(",") if name] or [step.name for step in every]
    unknown = sorted(set(names) - {step.name for step in every})
    if unknown:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(step.name for step in every)}")
    chosen = [step for step in every if step.name in names]
    if asked.list:
        for step in chosen:
            print(f"{step.name}: {' '.join(step.command)}")
        return
    asked.output.mkdir(parents=True, exist_ok=True)
    console, outcomes = Console(), []
    for number, step in enumerate(chosen, 1):
        console.print(f"{number} of {len(chosen)}: {step.name}")
        outcomes.append(run(step, asked.output.resolve()))
    console.print(table(outcomes))
    raise SystemExit(any(outcome.ending != "passed" for outcome in outcomes))


if __name__ == "__main__":
    main()
