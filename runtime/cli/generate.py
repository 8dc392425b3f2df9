"""`hart-edge generate`: prompts to PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from ..backends import AUTO, candidates
from ..errors import InputError
from ..files import check_writable
from ..image import save_png
from ..options import Options, check_seed, override
from ..pipeline import Pipeline, Step
from ..timing import StageTimes, peak_memory
from .output import console, progress_bar, write_json
from .sampling import Backend, Cfg, DiffusionSteps, LowVram, Residual, Smooth, TopK, TopP

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Bundle folder [default: the bundled model].")]


def generate(
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several.", metavar="PROMPT...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file; several pictures get -0, -1, … before the suffix.")] = Path(
        "out.png"
    ),
    bundle: BundleOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures per prompt.")] = 1,
    cfg: Cfg = None,
    top_k: TopK = None,
    top_p: TopP = None,
    smooth: Smooth = None,
    diffusion_steps: DiffusionSteps = None,
    residual: Residual = None,
    preview_dir: Annotated[Path | None, typer.Option(help="Write a preview after every scale into this folder.")] = None,
    backend: Backend = AUTO,
    low_vram: LowVram = False,
    require_verified: Annotated[bool, typer.Option("--require-verified", help="Refuse a bundle without a valid certificate.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was made and how long it took; - for standard output.")
    ] = None,
) -> None:
    """Draw pictures from prompts."""
    if batch < 1:
        raise InputError(f"batch is {batch}; expected 1 or more.")
    candidates(backend, low_vram)
    given = {"cfg": cfg, "top_k": top_k, "top_p": top_p, "smooth": smooth, "diffusion_steps": diffusion_steps, "residual": residual}
    override(Options(), **given)  # refuses bad values before anything is loaded
    jobs = [(prompt, check_seed(seed + k)) for k, prompt in enumerate(p for p in prompts for _ in range(batch))]
    paths = output_paths(output, len(jobs))
    for path in paths:
        check_writable(path)
    with Pipeline.load(bundle, backend=backend, require_verified=require_verified, low_vram=low_vram) as pipe:
        options, times = override(pipe.defaults, **given), StageTimes(pipe.memory.wait)
        images, taken = _run(pipe, jobs, options, times, preview_dir), pipe.backend
    for image, path in zip(images, paths, strict=True):
        save_png(image, path)
    made = [{"file": str(path), "prompt": prompt, "seed": number} for path, (prompt, number) in zip(paths, jobs, strict=True)]
    facts = {"images": made, "options": vars(options), "backend": taken, "seconds": times.seconds, "peak_memory_bytes": peak_memory()}
    write_json(json_file, facts)
    if str(json_file) != "-":
        console().print(f"{', '.join(map(str, paths))}: {times.total:.2f} s on {taken}", markup=False)


def output_paths(output: Path, count: int) -> list[Path]:
    """One path per picture."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{k}{output.suffix}") for k in range(count)]


def _run(pipe: Pipeline, jobs: list[tuple[str, int]], options: Options, times: StageTimes, previews: Path | None) -> list[Image.Image]:
    prompts, seeds = [prompt for prompt, _ in jobs], [seed for _, seed in jobs]
    with progress_bar() as progress:
        task = progress.add_task("scales", total=pipe.spec.scales)
        for step in pipe.stream(prompts, seeds=seeds, options=options, times=times):
            progress.update(task, completed=step.scale + 1, description=f"scale {step.patch_num}×{step.patch_num}")
            if previews is not None:
                _save_previews(step, previews)
    return step.previews()


def _save_previews(step: Step, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the preview folder {folder}: {error.strerror}.", "Choose another --preview-dir.") from error
    for image, path in zip(step.previews(), output_paths(folder / f"scale-{step.scale:02d}.png", step.tokens.shape[0]), strict=True):
        save_png(image, path)
