"""What the card does during a picture: the kernels that take longest in every stage, copies to and from the host, allocations.

    python tests/fused/profile_picture.py [--side 512|1024] [--batch N] [--bundle FOLDER] [--backend cuda|ort-cuda] [--json FILE]

Draws with the released model's sizes and random weights (or a bundle), three times; the third is profiled (torch's profiler).
A random bundle, which is made where --bundle names no folder, has no graphs that another backend than cuda could run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from gpu_profile import Profile, profiled
from random_bundle import HART_512, HART_1024, RELEASED, make_bundle

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.device_memory import DeviceMemory
from hart_edge.runtime.pipeline import Pipeline


def profile(bundle: Bundle, backend: str, batch: int) -> Profile:
    """Of the third generation, when everything is loaded and captured."""
    prompts = ["two red circles"] * batch
    with Pipeline.open(bundle, backend=backend) as pipe:
        assert isinstance(pipe.memory, DeviceMemory)
        for seed in (1, 2):
            pipe.generate_batch(prompts, seeds=list(range(seed, seed + batch)))
        return profiled(pipe, pipe.memory.device, prompts, list(range(3, 3 + batch)))


def report(found: Profile) -> str:
    lines = []
    facts = found.to_json()
    for stage, part in facts["stages"].items():
        lines.append(f"{stage}: {part['ms']:.2f} ms, card busy {part['busy ms']:.2f} ms")
        lines += [f"    {row['share']:5.1%} {row['ms']:9.3f} ms {row['calls']:5}x  {row['name'][:90]}" for row in part["top"][:6]]
    for name in ("copies to the card, bytes", "copies from the card, bytes", "allocations"):
        lines.append(f"{name}: {len(facts[name])}, the first {facts[name][:8]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, choices=(512, 1024), default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--backend", choices=("cuda", "ort-cuda"), default="cuda")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = asked.bundle or Path(folder) / "bundle"
        if not made.exists():
            make_bundle(made, {512: HART_512, 1024: HART_1024}[asked.side], RELEASED)
        found = profile(Bundle(made, check_files=False), asked.backend, asked.batch)
    print(report(found))
    if asked.json:
        asked.json.write_text(json.dumps(found.to_json(), indent=1))


if __name__ == "__main__":
    main()
