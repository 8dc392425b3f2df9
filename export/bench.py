"""The PyTorch reference as a contender of `hart-edge bench`."""

from __future__ import annotations

from hart_edge.runtime.bench import Contender, Job
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.timing import StageTimes

from .checkpoint import load_checkpoint
from .exporter import open_text
from .reference.hart import Settings


def load_reference(checkpoint: str, text_model: str | None, job: Job) -> Contender:
    """Eager PyTorch in float32 on the CPU: same weights, same noise, same stages as the runtime."""
    source = load_checkpoint(checkpoint, text_model)
    model, text = source.reference(), open_text(source, None)
    settings = Settings.of(job.options)

    def once(times: StageTimes) -> None:
        with times("text_encoder"):
            context = text(job.prompts)
        model.generate(context, PhiloxNoise(job.seeds), settings, times)

    return Contender(once, sum(p * p for p in model.patch_nums) * len(job.prompts), "PyTorch on the CPU")
