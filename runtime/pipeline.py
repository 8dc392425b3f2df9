"""Prompt to picture: composes tokenizer, engines, scale loop and decoder. The door for applications.

with Pipeline.load() as pipe:
    image = pipe.generate("a lighthouse at dusk", seed=1)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .backends import Backend, CertifiedBackend, ResidentBackend, candidates, open_backend
from .bundle import Bundle, bundled_folder
from .certificate import Certificate, read_certificate
from .diffusion import ResidualDiffusion
from .engine import Engine, Tensor
from .errors import BundleError, EngineError, GpuError, HartWarning, InputError, MissingPackageError
from .image import to_image
from .noise import NOISE_VERSION, Float32, Noise, PhiloxNoise
from .options import Options, check_seed
from .sampling import Int64
from .scale_loop import ScaleLoop
from .spec import CODEBOOK, UNCONDITIONAL_K, UNCONDITIONAL_V, ModelSpec
from .timing import StageTimes
from .tokenizer import PromptTokenizer
from .transformer import Conditioning, ScaleTransformer
from .transition import Transition


@dataclass(frozen=True)
class Step:
    """What `Pipeline.stream` yields after every scale.

    Attributes:
        scale, scales: number of this scale, from 0, and how many there are.
        patch_num: its side p.
        images: the finished pictures, after the last scale only.
    """

    scale: int
    scales: int
    patch_num: int
    _tokens: Tensor = field(repr=False)
    _f_hat: Tensor = field(repr=False)
    _pipeline: Pipeline = field(repr=False)
    _recipes: list[dict[str, Any]] = field(repr=False)
    images: list[Image.Image] | None = None

    @property
    def tokens(self) -> Int64:
        """[B, p²], fetched from where the engines keep them."""
        return self._pipeline.memory.download(self._tokens)

    @property
    def f_hat(self) -> Float32:
        """The latent so far, [B, Z, G, G] float32, fetched from where the engines keep it."""
        return self._pipeline.memory.download(self._f_hat)

    def previews(self) -> list[Image.Image]:
        """Pictures decoded from this scale's f_hat, one per prompt; costs one decoder run."""
        if self.images is not None:
            return self.images
        pixels = self._pipeline.decode(self._f_hat)
        return [to_image(p, recipe | {"preview_of_scale": self.scale}) for p, recipe in zip(pixels, self._recipes, strict=True)]

    def preview(self) -> Image.Image:
        """The first prompt's preview."""
        return self.previews()[0]


class Pipeline:
    """A loaded bundle. A context manager: leaving it frees the engines.

    Attributes:
        spec: the model's sizes.
        defaults: the settings used where a caller gives none: the published ones, unless the model has its own.
        backend: name of the backend that runs, never "auto".
        memory: where the engines' tensors lie.
    """

    def __init__(self, bundle: Bundle, backend: Backend, engines: dict[str, Engine]) -> None:
        self.bundle, self.engines, self._backend = bundle, engines, backend
        self.backend, self.memory = backend.name, backend.memory
        self.spec: ModelSpec = bundle.spec
        self.defaults: Options = bundle.defaults
        constants = bundle.constants(CODEBOOK, UNCONDITIONAL_K, UNCONDITIONAL_V)
        transformer = ScaleTransformer(self.spec, engines["context"], engines["transformer"], constants, self.memory)
        diffusion = ResidualDiffusion(self.spec, engines["residual_condition"], engines["residual_step"], self.memory)
        transition = Transition(self.spec, engines["transition"], self.memory)
        loop = ScaleLoop(self.spec, transformer, transition, diffusion, constants, self.memory)
        self.loop: ScaleLoop = backend.make_loop(loop) if isinstance(backend, ResidentBackend) else loop
        self._tokenizer = _open_tokenizer(bundle)

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        backend: str = "auto",
        require_verified: bool = False,
        check_files: bool = True,
        threads: int = 0,
        low_vram: bool = False,
    ) -> Pipeline:
        """Open a bundle folder.

        Args:
            path: the bundle; None for the one that came with this install.
            backend: "tensorrt-rtx", "tensorrt", "cuda", "ort-cuda", "cpu", or "auto" for the fastest that works, TensorRT only
                where its engines were built for the bundle; HartWarning says why one was passed over.
            require_verified: refuse a bundle without a valid certificate (otherwise HartWarning says so).
            check_files: compare every file's size and SHA-256 with the manifest first; a large file is hashed again when
                something about it has changed since the last time.
            threads: CPU threads per operator, 0 for one per core.
            low_vram: with "cuda", hold only the present phase's weights and buffers on the GPU, at the cost of reading them
                again for every picture. A preview between two scales needs the decoder besides.

        Raises BundleError, EngineError, (no such bundle in this install) InputError or, for a backend that cannot work
        here, MissingPackageError or GpuError, with the remedy.
        """
        bundle = Bundle(bundled_folder() if path is None else path, check_files, remember=True)
        _judge(read_certificate(bundle.root), f"bundle {bundle.root}", "", require_verified)
        pipe = cls.open(bundle, backend=backend, threads=threads, low_vram=low_vram)
        try:
            if isinstance(pipe._backend, CertifiedBackend):
                certificate, flags = pipe._backend.certificate(bundle.root), f" --backend {pipe.backend}"
                _judge(certificate, f"bundle {bundle.root} with {pipe.backend}", flags, require_verified)
        except BundleError:
            pipe.close()
            raise
        return pipe

    @classmethod
    def open(cls, bundle: Bundle, *, backend: str = "auto", threads: int = 0, low_vram: bool = False) -> Pipeline:
        """Load the engines of a bundle as it is, checked or not, certified or not."""
        *faster, last = candidates(backend, low_vram, bundle.root)
        for name in faster:
            try:
                return cls._open(bundle, open_backend(name, threads, low_vram))
            except (EngineError, GpuError, MissingPackageError) as error:
                warnings.warn(f"backend {name} was passed over: {error}", HartWarning, stacklevel=2)
        return cls._open(bundle, open_backend(last, threads, low_vram))

    @classmethod
    def _open(cls, bundle: Bundle, backend: Backend) -> Pipeline:
        engines: dict[str, Engine] = {}
        try:
            for name in bundle.manifest.engines:
                engines[name] = backend.open_engine(bundle.engine(name), name)
            return cls(bundle, backend, engines)
        except BaseException:
            _close_all(engines)
            backend.close()
            raise

    def generate(self, prompt: str, *, seed: int = 0, options: Options | None = None, times: StageTimes | None = None) -> Image.Image:
        """One picture. `image.info` holds its recipe; `save_png` writes it to the file."""
        return self.generate_batch([prompt], seeds=[seed], options=options, times=times)[0]

    def generate_batch(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: Options | None = None, times: StageTimes | None = None
    ) -> list[Image.Image]:
        """One picture per prompt and seed, computed together."""
        *_, last = self.stream(prompts, seeds=seeds, options=options, times=times)
        return last.previews()

    def stream(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        options: Options | None = None,
        times: StageTimes | None = None,
    ) -> Iterator[Step]:
        """Yield a Step after every scale; the last one carries the pictures. Closing the generator cancels.

        Args:
            prompts: one prompt or several.
            seed: of the first picture; picture j of several gets seed + j.
            seeds: one seed per prompt, in place of `seed`.
            options: settings; None for `defaults`.
            times: filled with the seconds of every stage; one that waits (`StageTimes(pipe.memory.wait)`) for what a stage takes
                on a GPU, another for how long it keeps the caller.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise InputError("no prompts were given; expected one or more.")
        seeds = [seed + j for j in range(len(prompts))] if seeds is None else list(seeds)
        if len(seeds) != len(prompts):
            raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts; expected one seed per prompt.")
        noise = PhiloxNoise(seeds)
        return self._stream(prompts, seeds, options or self.defaults, noise, times or StageTimes())

    def _stream(self, prompts: list[str], seeds: list[int], options: Options, noise: Noise, times: StageTimes) -> Iterator[Step]:
        conditioning = self.encode_text(prompts, times)
        settings = asdict(replace(options, diffusion_steps=options.diffusion_steps or self.spec.diffusion_steps))
        common = {
            "settings": settings,
            "noise": NOISE_VERSION,
            "precision": self.bundle.manifest.precision,
            "bundle": self.bundle.root.name,
            "backend": self.backend,
        }
        recipes = [{"prompt": prompt, "seed": check_seed(seed), **common} for prompt, seed in zip(prompts, seeds, strict=True)]
        for result in self.loop.run(conditioning, options, noise, times):
            images = None
            if result.scale == self.spec.scales - 1:
                with times("decoder"):
                    images = [to_image(p, recipe) for p, recipe in zip(self.decode(result.f_hat), recipes, strict=True)]
            side = self.spec.patch_nums[result.scale]
            yield Step(result.scale, self.spec.scales, side, result.tokens, result.f_hat, self, recipes, images)

    def encode_text(self, prompts: Sequence[str], times: StageTimes | None = None) -> Conditioning:
        """Prompts → conditioning; HartWarning shows what a prompt longer than T tokens loses."""
        if self._tokenizer is None:
            self.bundle.engine("text_encoder")  # raises, with the remedy
            raise BundleError(f"bundle {self.bundle.root} has no tokenizer.", "Export it again.")
        tokens = self._tokenizer.encode(prompts)
        for dropped in filter(None, tokens.dropped):
            warnings.warn(f"the prompt is longer than {self.spec.context_tokens} tokens; dropped: {dropped!r}", HartWarning, stacklevel=2)
        engine = self.engines["text_encoder"]
        shape = (len(prompts), self.spec.context_tokens, self.spec.context_dim)
        hidden = self.memory.empty(shape, engine.outputs["context"].dtype)
        with (times or StageTimes())("text_encoder"):
            engine.run({"input_ids": tokens.ids, "attention_mask": tokens.mask}, {"context": hidden})
        return Conditioning(hidden, tokens.position_ids)

    def decode(self, f_hat: Tensor) -> npt.NDArray[np.uint8]:
        """f_hat [B, Z, G, G] float32 → pixels [B, H, W, 3] uint8."""
        side = self.spec.image_size
        pixels = np.empty((f_hat.shape[0], side, side, 3), np.uint8)
        self.engines["decoder"].run({"f_hat": f_hat}, {"image": pixels})
        return pixels

    def close(self) -> None:
        """Free all engines; may be called twice."""
        _close_all(self.engines)
        self._backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _judge(certificate: Certificate, what: str, flags: str, require: bool) -> None:
    """Warn of a certificate that does not apply; BundleError if it is required."""
    if certificate.valid:
        return
    message, hint = f"{what} is {certificate.summary}.", f"Run `hart-edge verify BUNDLE --checkpoint CHECKPOINT{flags}`."
    if require:
        raise BundleError(message, hint)
    warnings.warn(f"{message} {hint}", HartWarning, stacklevel=3)


def _open_tokenizer(bundle: Bundle) -> PromptTokenizer | None:
    text = bundle.manifest.text
    if text is None:
        return None
    return PromptTokenizer(bundle.file("tokenizer.json"), text.pad_token_id, bundle.spec.context_tokens)


def _close_all(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        engine.close()
