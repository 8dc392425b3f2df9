"""One batch size and one set of options on the GPU: all buffers and all work of a generation, put together once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from hart_edge.plugins import Buffer, Launch, guided_sample, latent_sum, next_scale, rope_cache
from hart_edge.plugins.guided_sample import Sampling

from ..engine import Array, DeviceTensor
from ..noise import Noise, PhiloxNoise
from ..options import Options, top_k_of
from ..sampling import scale_ratio
from ..transformer import Conditioning
from .blocks import SCRATCH, Caches, Layers, Pass, Rotate, Scratch
from .buffers import entry, prefix, rows, view
from .conditioning import ContextBuffers, add_context
from .diffusion import DiffusionBuffers, FusedDiffusion
from .model import FusedModel, ModelPlan
from .program import Program
from .workspace import Memory, Plan, Workspace


@dataclass(frozen=True)
class Settings:
    """What a session is made for; steps: of the residual diffusion; recorded: noise comes from arrays in place of seeds."""

    batch: int
    options: Options
    steps: int
    recorded: bool


@dataclass(frozen=True)
class RecordedBuffers:
    """Noise from arrays: token and smooth [B, G², V], diffusion [1 + steps, B, G², Z] with the start first, all float32."""

    token: Buffer
    smooth: Buffer
    diffusion: Buffer

    @classmethod
    def plan(cls, memory: Memory, model: ModelPlan, settings: Settings) -> RecordedBuffers:
        spec, cells = model.spec, model.spec.grid**2
        shape = (settings.batch, cells, spec.codebook_size)
        return cls(
            token=memory.buffer("noise.token", shape, "float32"),
            smooth=memory.buffer("noise.smooth", shape, "float32"),
            diffusion=memory.buffer("noise.diffusion", (1 + settings.steps, settings.batch, cells, spec.latent_channels), "float32"),
        )


@dataclass(frozen=True)
class Buffers:
    """Everything that is no weight. With `SCRATCH` in their plan: contents only within one scale."""

    x: Buffer  # [most tokens of a scale, C]
    last: Buffer  # [B, C], scale 0's last position before the head
    logits: Buffer  # [most rows, V] float32
    tokens: Buffer  # [B, G²] int64
    codes: Buffer  # [B, G², Z] float32
    f_hat: Buffer  # [B, G², Z] float32
    seeds: Buffer  # [B] uint64
    positions: Buffer  # [B, T] int64
    offsets: Buffer  # [2B] int64
    noise: RecordedBuffers | None
    scratch: Scratch
    caches: Caches
    context: ContextBuffers
    diffusion: DiffusionBuffers | None

    @classmethod
    def plan(cls, memory: Memory, model: ModelPlan, settings: Settings) -> Buffers:
        spec, dtype, batch = model.spec, model.dtype, settings.batch
        cells, take = spec.grid**2, memory.buffer
        most = max(batch * spec.context_tokens, 2 * batch * cells)
        return cls(
            x=take("x", (most, spec.width), dtype),
            last=take("last", (batch, spec.width), dtype, SCRATCH),
            logits=take("logits", (2 * batch * cells, spec.codebook_size), "float32", SCRATCH),
            tokens=take("tokens", (batch, cells), "int64"),
            codes=take("codes", (batch, cells, spec.latent_channels), "float32"),
            f_hat=take("f_hat", (batch, cells, spec.latent_channels), "float32"),
            seeds=take("seeds", (batch,), "uint64"),
            positions=take("positions", (batch, spec.context_tokens), "int64"),
            offsets=take("offsets", (2 * batch,), "int64"),
            noise=RecordedBuffers.plan(memory, model, settings) if settings.recorded else None,
            scratch=Scratch.plan(memory, most, spec.width, model.generator.sizes.transformer.hidden, dtype),
            caches=Caches.plan(memory, spec, batch, dtype),
            context=ContextBuffers.plan(memory, spec, batch, dtype),
            diffusion=DiffusionBuffers.plan(memory, spec, batch, settings.steps, dtype) if settings.options.residual else None,
        )


def plan_session(model: ModelPlan, settings: Settings) -> Plan:
    """All buffers of a session."""
    plan = Plan()
    Buffers.plan(plan, model, settings)
    return plan


class Session:
    """Put together for one `Settings`; `begin`, then per scale `transform`, `sample` and `advance`, at the last `finish`.

    All of them only put work on the stream.

    Attributes:
        buffers: where everything lies; tokens and f_hat are read between the calls.

    Raises GpuMemoryError when weights or buffers do not fit.
    """

    def __init__(self, model: FusedModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.weights = model.generator.get()
        self.workspace = Workspace(model.context.device, model.context.stream, plan_session(model.plan, settings), "scale loop")
        self._programs: list[Program] = []
        try:
            self._put_together()
        except BaseException:
            self.close()
            raise

    def _put_together(self) -> None:
        model = self.model
        self.buffers = Buffers.plan(self.workspace, model.plan, self.settings)
        zeros = view(self.buffers.positions, self.settings.batch * model.spec.context_tokens)
        model.context.zero(zeros)
        self.buffers.caches.reset(model.context, self.weights.unconditional, self.buffers.scratch, zeros)
        self._context = self._new(self._add_context)
        scales = range(model.spec.scales)
        self._transform = [self._new(partial(self._add_scale, scale=i)) for i in scales]
        self._sample = [self._new(partial(self._add_sampling, scale=i)) for i in scales]
        self._advance = [self._new(partial(self._add_transition, scale=i)) for i in scales[:-1]]
        self._finish = self._new(self._add_end)

    def _new(self, add: Callable[[Program], None]) -> Program:
        program = Program(self.model.context)
        add(program)
        self._programs.append(program)
        return program

    def begin(self, conditioning: Conditioning, noise: Noise) -> None:
        """Take the prompts and the seeds, and make the input of scale 0."""
        context, buffers, batch = self.model.context, self.buffers, self.settings.batch
        positions = conditioning.position_ids
        self._set_hidden(conditioning.hidden)
        context.upload(buffers.positions, np.ascontiguousarray(positions))
        context.upload(buffers.offsets, np.concatenate([positions[:, -1], np.zeros(batch, np.int64)]))
        if isinstance(noise, PhiloxNoise):
            context.upload(buffers.seeds, np.array(noise.seeds, np.uint64))
        self._context.run()

    def transform(self, scale: int) -> None:
        self._transform[scale].run()

    def sample(self, scale: int, noise: Noise) -> None:
        """Logits → tokens and codes."""
        if self.buffers.noise is not None:
            shape = (self.model.spec.patch_nums[scale] ** 2, self.model.spec.codebook_size)
            self._record(self.buffers.noise.token, lambda j: noise.token(j, scale, shape))
            if self.settings.options.smooth:
                self._record(self.buffers.noise.smooth, lambda j: noise.smooth(j, scale, shape))
        self._sample[scale].run()

    def advance(self, scale: int) -> None:
        """Codes into f_hat, and the next scale's input."""
        self._advance[scale].run()

    def finish(self, noise: Noise) -> None:
        """The last codes and the residual into f_hat."""
        if self.buffers.noise is not None and self.settings.options.residual:
            shape, target = (self.model.spec.grid**2, self.model.spec.latent_channels), self.buffers.noise.diffusion
            self._record(entry(target, 0), lambda j: noise.diffusion_init(j, shape))
            for k in range(self.settings.steps):
                self._record(entry(target, 1 + k), partial(noise.diffusion_step, step=k, shape=shape))
        self._finish.run()

    def tokens(self, scale: int) -> Buffer:
        """Of a scale that has just been sampled, [B, p²]."""
        return prefix(self.buffers.tokens, self.settings.batch, self.model.spec.patch_nums[scale] ** 2)

    def close(self) -> None:
        """Idempotent."""
        for program in self._programs:
            program.close()
        self.workspace.close()

    def _record(self, target: Buffer, draw: Callable[[int], Array]) -> None:
        """Noise of all images to the start of a buffer."""
        arrays = np.stack([draw(j) for j in range(self.settings.batch)])
        self.model.context.upload(prefix(target, *arrays.shape), arrays)

    def _set_hidden(self, hidden: Array | DeviceTensor) -> None:
        target, context = self.buffers.context.context, self.model.context
        if isinstance(hidden, DeviceTensor):
            context.copy(Buffer(hidden.address, target.shape, hidden.dtype.name), target)
        else:
            context.upload(target, np.ascontiguousarray(hidden.reshape(target.shape), dtype=target.dtype))

    def _add_context(self, program: Program) -> None:
        model, buffers = self.model, self.buffers
        program.zero(buffers.f_hat)
        x = rows(buffers.x, 0, self.settings.batch * model.spec.context_tokens)
        add_context(program, model.context, model.spec, self.weights.conditioning, buffers.context, x, model.facts.norm_eps)

    def _add_scale(self, program: Program, scale: int) -> None:
        """All layers and the head."""
        model, buffers, batch = self.model, self.buffers, self.settings.batch
        now = self._pass(scale)
        x = rows(buffers.x, 0, now.count)
        layers = Layers(model.context, model.spec, self.weights.transformer, model.attentions, model.facts, biased=False)
        layers.add(program, now, x, buffers.scratch, buffers.caches, self._rotate(scale))
        scales, shifts = buffers.context.head
        if scale == 0:
            for j in range(batch):
                last = rows(x, (j + 1) * now.tokens - 1, (j + 1) * now.tokens)
                layers.add_head_norm(program, last, (rows(scales, j, j + 1), rows(shifts, j, j + 1)), rows(buffers.last, j, j + 1))
            layers.add_logits(program, buffers.last, rows(buffers.logits, 0, batch))
        else:
            normed = rows(buffers.scratch.normed, 0, now.count)
            layers.add_head_norm(program, x, (scales, shifts), normed)
            layers.add_logits(program, normed, rows(buffers.logits, 0, now.count))

    def _pass(self, scale: int) -> Pass:
        spec, batch = self.model.spec, self.settings.batch
        start = sum(spec.input_tokens(i) for i in range(scale))
        return Pass(batch if scale == 0 else 2 * batch, spec.input_tokens(scale), start)

    def _rotate(self, scale: int) -> Rotate:
        model, buffers, start = self.model, self.buffers, self._pass(scale).start
        side = 0 if scale == 0 else model.spec.patch_nums[scale]
        frequency = self.weights.frequencies[1 if side else 0]
        positions, grid = (buffers.offsets, model.spec.grid) if side else (buffers.positions, 0)

        def rotate(layer: int, qkv: Buffer, q: Buffer, k: Buffer, v: Buffer) -> Launch:
            own = self.weights.transformer.layers[layer]
            return rope_cache.launch(qkv, own.q_bias, own.v_bias, frequency, positions, q, k, v, start, side, grid, own.gain)

        return rotate

    def _add_sampling(self, program: Program, scale: int) -> None:
        model, buffers, batch, options = self.model, self.buffers, self.settings.batch, self.settings.options
        spec, count = model.spec, model.spec.patch_nums[scale] ** 2
        ratio, shape = scale_ratio(scale, spec.scales), (batch, count, spec.codebook_size)
        conditional = view(rows(buffers.logits, 0, batch * count), *shape)
        unconditional = view(rows(buffers.logits, batch * count, 2 * batch * count), *shape) if scale else None
        how = Sampling(options.cfg * ratio, top_k_of(options, scale), options.top_p, ratio, scale, options.smooth)
        given = buffers.noise
        noise = None if given is None else (prefix(given.token, *shape), prefix(given.smooth, *shape))
        launch = guided_sample.launch(
            conditional, unconditional, buffers.seeds, self.weights.codebook, self.tokens(scale), self._codes(scale), how, noise
        )
        program.kernels(launch)

    def _codes(self, scale: int) -> Buffer:
        spec = self.model.spec
        return prefix(self.buffers.codes, self.settings.batch, spec.patch_nums[scale] ** 2, spec.latent_channels)

    def _add_transition(self, program: Program, scale: int) -> None:
        model, buffers, batch = self.model, self.buffers, self.settings.batch
        spec, weights = model.spec, self.weights.transition
        x = prefix(buffers.x, 2 * batch, spec.patch_nums[scale + 1] ** 2, spec.width)
        phi, level = weights.phi[spec.phi_index[scale]], weights.level(scale + 1)
        program.kernels(*next_scale.launches(self._codes(scale), buffers.f_hat, phi, model.facts.phi_ratio, weights.word, level, x))

    def _add_end(self, program: Program) -> None:
        model, buffers = self.model, self.buffers
        last = model.spec.scales - 1
        residual = None
        if buffers.diffusion is not None:
            self._add_diffusion(program, buffers.diffusion, last)
            residual = buffers.diffusion.state
        program.kernels(latent_sum.launch(buffers.f_hat, self._codes(last), buffers.f_hat, residual))

    def _add_diffusion(self, program: Program, memory: DiffusionBuffers, last: int) -> None:
        model, buffers = self.model, self.buffers
        diffusion = FusedDiffusion(model.context, self.weights.diffusion, memory, model.facts.norm_eps)
        tokens = self.tokens(last)
        diffusion.add_condition(program, rows(buffers.x, 0, self._pass(last).count), view(tokens, tokens.shape[0] * tokens.shape[1]))
        guidance = self.settings.options.cfg * scale_ratio(last, model.spec.scales)
        diffusion.add_sampling(program, guidance, buffers.seeds if buffers.noise is None else buffers.noise.diffusion)
