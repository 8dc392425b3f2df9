"""The PyTorch reference as a contender of `hart-edge bench`."""

from __future__ import annotations

from collections.abc import Callable

from hart_edge.runtime.bench import Job, Measurement, repeat
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.timing import StageTimes

from .checkpoint import load_checkpoint
from .exporter import open_text
from .reference.hart import HartReference, Settings
from .reference.text import TextConditioner


def measure_reference(checkpoint: str, text_model: str | None, job: Job) -> Measurement:
    """Eager PyTorch in float32 on the CPU: same weights, same noise, same stages as the runtime."""

    def load() -> tuple[Callable[[StageTimes], None], int]:
        source = load_checkpoint(checkpoint, text_model)
        model, text = source.reference(), open_text(source, None)
        tokens = sum(p * p for p in model.patch_nums) * len(job.prompts)
        return lambda times: _generate(model, text, job, times), tokens

    return repeat(load, job.runs)


def _generate(model: HartReference, text: TextConditioner, job: Job, times: StageTimes) -> None:
    with times("text_encoder"):
        context = text(job.prompts)
    options = job.options
    settings = Settings(options.cfg, options.smooth, options.top_k, options.top_p, options.diffusion_steps)
    model.generate(context, PhiloxNoise(job.seeds), settings, times)
