"""The PyTorch reference as a contender of `hart-edge bench`: eager or compiled, on the first GPU or on the CPU.

On a GPU a float16 bundle meets the reference as it was published: float16 weights under autocast, with logits, sampling,
codebook and latent in float32. The noise is made and uploaded in the first warm-up and kept; a run starts at the prompts and
ends with Pillow images, as the runtime's does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from hart_edge.runtime.bench import Contender, Job, Loader, measure, nothing_to_wait_for
from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.errors import CheckpointError, InputError
from hart_edge.runtime.noise import Noise, PhiloxNoise
from hart_edge.runtime.timing import StageTimes

from .bench_noise import KeptNoise
from .checkpoint import load_checkpoint
from .exporter import check_text_width, hash_text, open_text
from .flops import TextSizes, Work, stage_flops
from .reference.hart import Clock, HartReference, Settings, Trace
from .reference.text import TextConditioner

PRODUCT = 8192
"""Rows and columns of the product that the arithmetic rate is taken from."""
PRODUCTS = 10
SINGLE_STAGES = ("sampling",)
"""Stages in float32 whatever the precision."""


@dataclass(frozen=True)
class Source:
    """Where the reference's weights come from; see `load_checkpoint` and `open_text`."""

    checkpoint: str
    text_model: str | None = None
    system_prompt: str | None = None

    def open(self) -> tuple[HartReference, TextConditioner]:
        """Both models in float32 on the CPU."""
        source = load_checkpoint(self.checkpoint, self.text_model)
        model, text = source.reference(), open_text(source, self.system_prompt)
        if text is None:
            raise CheckpointError(f"{self.checkpoint} has no text model.", "Name one with --text-model.")
        check_text_width(model, text)
        return model, text


@dataclass(frozen=True)
class Place:
    """Where the reference runs, and the type of its weights."""

    device: str
    dtype: torch.dtype

    @classmethod
    def of(cls, precision: str) -> Place:
        """The GPU, in the precision of a bundle; without one the CPU, in float32."""
        if torch.cuda.is_available():
            return cls("cuda", torch.float16 if precision == "fp16" else torch.float32)
        return cls("cpu", torch.float32)

    @property
    def name(self) -> str:
        """For people."""
        where = torch.cuda.get_device_name() if self.device == "cuda" else "the CPU"
        return f"PyTorch {torch.__version__} on {where}, {str(self.dtype).removeprefix('torch.')}"

    def put(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Move a module; its parameters, not its buffers, take the type."""
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype or self.dtype)
        module.to(self.device)

    def wait(self) -> None:
        """Until the GPU has done all work."""
        torch.cuda.synchronize()


def load_reference(source: Source, place: Place, compiled: bool, job: Job) -> Contender:
    """Same weights, same noise, same stages as the runtime, for `Loader`."""
    model, text = source.open()
    put_reference(model, text, place)
    if compiled:
        compile_reference(model, text)
    philox = PhiloxNoise(job.seeds)
    kept = KeptNoise(philox, place.device) if place.device == "cuda" else None
    tokens = sum(p * p for p in model.patch_nums) * len(job.prompts)

    def once(times: StageTimes) -> None:
        for pixels in draw(model, text, place, job, kept or philox, times).numpy():
            Image.fromarray(pixels)

    def device_memory() -> int | None:
        return None if kept is None else torch.cuda.max_memory_reserved() - kept.bytes

    sizes = TextSizes.of(text.model.config, len(text.system_ids))
    flops = stage_flops(Work(model.transformer.config, model.vae.config, sizes, job.options, len(job.prompts)))
    wait = nothing_to_wait_for if kept is None else place.wait
    return Contender(once, len(job.prompts), tokens, place.name, wait, device_memory, flops)


def put_reference(model: HartReference, text: TextConditioner, place: Place) -> None:
    """Move what a generation runs. The codebook and the φ convolutions stay in float32."""
    for module in (text.model, model.transformer, model.vae.post_quant_conv, model.vae.decoder):
        place.put(module)
    place.put(model.vae.quantize, torch.float32)


def compile_reference(model: HartReference, text: TextConditioner, backend: str | Callable[..., object] = "inductor") -> None:
    """torch.compile for the text model's layers, the blocks, the diffusion network and the decoder.

    Blocks are compiled for any length: they see another one at every scale, and specialising would exceed the limit of
    torch.compile, after which it falls back to eager.
    """
    for block in model.transformer.blocks:
        block.compile(dynamic=True, backend=backend)
    for module in (*text.model.layers, model.transformer.diffloss.net, model.vae.decoder):
        module.compile(dynamic=False, backend=backend)


@torch.inference_mode()
def draw(model: HartReference, text: TextConditioner, place: Place, job: Job, noise: Noise, times: StageTimes) -> Tensor:
    """One run; pixels [B, H, W, 3] uint8 in host memory."""
    clock, trace = _clock(times, place), _Last("f_hat_final")
    with times("text_encoder"):
        context = text(job.prompts)
        context.position_ids = context.position_ids.to(place.device)
    for _ in model.scales(context, noise, Settings.of(job.options), trace, clock):
        pass
    with clock("decoder"):
        picture = model.vae.decode(trace["f_hat_final"]).float() * 127.5 + 127.5
        return picture.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _clock(times: StageTimes, place: Place) -> Clock:
    """Times a stage and runs it in its types."""

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        single = place.dtype == torch.float32 or stage in SINGLE_STAGES
        with times(stage), nullcontext() if single else torch.autocast(place.device, place.dtype):
            yield

    return clock


class _Last(Trace):
    """A trace that keeps one tensor, so that the reference is not charged for all the others."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __setitem__(self, name: str, value: Tensor) -> None:
        if name == self._name:
            super().__setitem__(name, value)

    def __ior__(self, other: Trace) -> _Last:  # type: ignore[override, misc]
        for name, value in other.items():
            self[name] = value
        return self


def source_of(bundle: Bundle, checkpoint: str, text_model: str | None, system_prompt: str | None) -> Source:
    """What to compare a bundle with; InputError unless the system prompt is the one that the bundle was exported with."""
    text = bundle.manifest.text
    if text is not None and text.system_prompt_sha256 != hash_text(system_prompt):
        raise InputError(
            f"bundle {bundle.root} was exported with system prompt {text.system_prompt_sha256}, compared with {hash_text(system_prompt)}.",
            "Pass the same --system-prompt FILE to export and bench.",
        )
    return Source(checkpoint, text_model, system_prompt)


def reference_loader(source: Source, precision: str, compiled: bool, job: Job) -> Loader:
    """The reference beside a bundle of that precision."""
    return Loader(load_reference, (source, Place.of(precision), compiled, job))


def product_rate(runs: int) -> float | None:
    """Operations per second of a large float16 product on the GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    outcome = measure({"product": Loader(load_product, (Place("cuda", torch.float16),))}, runs)
    for error in outcome.failed.values():
        raise error
    return 2 * PRODUCTS * PRODUCT**3 / outcome.results["product"].stages["product"]


def load_product(place: Place, size: int = PRODUCT) -> Contender:
    """Products of square matrices, for `Loader`."""
    a, b = (torch.randn(size, size, device=place.device).to(place.dtype) for _ in range(2))

    def once(times: StageTimes) -> None:
        with times("product"):
            for _ in range(PRODUCTS):
                torch.mm(a, b)

    return Contender(once, 0, 0, place.name, place.wait)
