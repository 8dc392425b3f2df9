"""The residual diffusion as GPU work: hidden states and tokens of the last scale to a residual latent.

The condition is embedded once, the timesteps at load; the MLP runs once per step, over both guidance halves at a time, and
one kernel does the rest of a step: guidance, posterior, noise, and the next step's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hart_edge.plugins import add_silu, cast, diffusion_update, gate_residual, layer_norm_modulate, noise, philox, rms_norm, take_rows
from hart_edge.plugins.kernel import Buffer

from ..diffusion import RESIDUAL_GAIN, effective_guidance, schedule, timesteps
from ..spec import ModelSpec
from .buffers import entry, prefix, rows, view
from .context import FusedContext
from .diffusion_weights import Affine, DiffusionLayer, DiffusionWeights
from .fp8 import fed
from .linear import Linear
from .program import Program
from .workspace import Memory

PHASE = "diffusion"
LAYER_EPS = 1e-6
"""Of the MLP's layer norms; the same in every checkpoint, as the diffusion head's code has it."""
SHIFT, SCALE, GATE = range(3)
"""Parts of a modulation."""


@dataclass(frozen=True)
class DiffusionBuffers:
    """Memory for B images of L = G² rows each; R = 2·B·L rows of both guidance halves, the conditional ones first.

    Attributes:
        times: [steps, W] embedded timesteps, in the order they run; lives on.
        state: [B, L, Z] float32, x_t, and in the end the residual; lives on.
        condition: [R, W], the same for all steps; active: [R, W] silu(time + condition).
        words, normed: [R, C]. input: [R, Z]. h, a, b: [R, W]. modulation: [R, 3W]. raw: [R, 2Z].
    """

    times: Buffer
    state: Buffer
    condition: Buffer
    active: Buffer
    words: Buffer
    normed: Buffer
    input: Buffer
    h: Buffer
    a: Buffer
    b: Buffer
    modulation: Buffer
    raw: Buffer

    @classmethod
    def plan(cls, memory: Memory, spec: ModelSpec, batch: int, steps: int, dtype: str) -> DiffusionBuffers:
        length, channels, width = spec.grid**2, spec.latent_channels, spec.diffusion_width

        def scratch(name: str, columns: int) -> Buffer:
            return memory.buffer(f"diffusion.{name}", (2 * batch * length, columns), dtype, PHASE)

        return cls(
            times=memory.buffer("diffusion.times", (steps, width), dtype),
            state=memory.buffer("diffusion.state", (batch, length, channels), "float32"),
            words=scratch("words", spec.width),
            normed=scratch("normed", spec.width),
            input=scratch("input", channels),
            modulation=scratch("modulation", 3 * width),
            raw=scratch("raw", 2 * channels),
            **{name: scratch(name, width) for name in ("condition", "active", "h", "a", "b")},
        )


class FusedDiffusion:
    """Puts the work of the residual diffusion together, in the order of its methods.

    Args:
        eps: of the condition's RMSNorm.
    """

    def __init__(self, context: FusedContext, weights: DiffusionWeights, buffers: DiffusionBuffers, eps: float) -> None:
        self._context, self._weights, self._buffers, self._eps = context, weights, buffers, eps
        self._batch, self._length, self._channels = buffers.state.shape

    def add_condition(self, program: Program, hidden: Buffer, index: Buffer) -> None:
        """hidden [R, C], the last block's output, and index [B·L] int64, the tokens → `condition`."""
        b, weights = self._buffers, self._weights
        normed, step = fed(weights.condition[0], b.normed)
        program.kernels(
            take_rows.launch(weights.words, index, b.words),
            rms_norm.launch(hidden, weights.norm, normed, self._eps, residual=(b.words, b.words), scale=step),
        )
        self._linear(program, weights.condition, normed, b.condition)

    def add_sampling(self, program: Program, guidance: float, source: Buffer) -> None:
        """`condition` → `state`: all steps, then the published gain. Uploads the timesteps, so it belongs to loading.

        Args:
            guidance: its weight at the last scale.
            source: seeds [B] uint64, or recorded noise [1 + steps, B, L, Z] float32 with the start first.
        """
        b, drawn = self._buffers, source.dtype == "uint64"
        steps = b.times.shape[0]
        self._context.upload(b.times, self._weights.time.rows(timesteps(steps)[::-1].tolist()))
        if drawn:
            program.kernels(noise.launch(source, b.state, 0, philox.DIFFUSION_INIT, True))
        else:
            program.copy(entry(source, 0), b.state)
        self.add_input(program)
        for k, constants in enumerate(schedule(steps)):
            self.add_network(program, entry(b.times, k))
            factor = float(RESIDUAL_GAIN) if k == steps - 1 else 1.0
            coefficients = [*constants.tolist(), effective_guidance(guidance)]
            self.add_update(program, coefficients, source if drawn else entry(source, 1 + k), k, factor)

    def add_input(self, program: Program) -> None:
        """`state` → the network's input, for both halves; the steps themselves leave it behind for the next."""
        b, half = self._buffers, self._batch * self._length
        state = view(b.state, half, self._channels)
        for target in (rows(b.input, 0, half), rows(b.input, half, 2 * half)):
            if target.dtype == "float32":
                program.copy(state, target)
            else:
                program.kernels(cast.launch(state, target))

    def add_network(self, program: Program, time: Buffer) -> None:
        """The MLP at one embedded timestep [W]: input and `condition` → raw (eps, v)."""
        b, weights = self._buffers, self._weights
        active, step = fed(weights.final_modulation[0], b.active)
        program.kernels(add_silu.launch(b.condition, active, time, step))
        self._linear(program, weights.input, b.input, b.h)
        for layer in weights.layers:
            self._add_layer(program, layer, active)
        pair = prefix(b.modulation, b.modulation.shape[0], 2 * weights.width)
        self._linear(program, weights.final_modulation, active, pair)
        normed, step = fed(weights.final[0], b.a)
        program.kernels(layer_norm_modulate.launch(b.h, pair, normed, SHIFT, SCALE, LAYER_EPS, step=step))
        self._linear(program, weights.final, normed, b.raw)

    def add_update(
        self,
        program: Program,
        coefficients: Sequence[float],
        source: Buffer,
        step: int = 0,
        factor: float = 1.0,
        prediction: Buffer | None = None,
    ) -> None:
        """`state` and raw → `state` one step earlier, times factor, and the next input.

        Args:
            coefficients: the eight of `runtime.diffusion.COEFFICIENTS`.
            source: seeds [B] uint64 for the noise of `step`, or that noise [B, L, Z] float32.
            prediction: [B·L, 2Z] float32, gets the guided (eps, v).
        """
        b = self._buffers
        program.kernels(diffusion_update.launch(b.state, b.raw, source, b.state, coefficients, step, factor, b.input, prediction))

    def _add_layer(self, program: Program, layer: DiffusionLayer, active: Buffer) -> None:
        """h += gate · second(silu(first(norm(h) · (1 + scale) + shift)))."""
        b = self._buffers
        self._linear(program, layer.modulation, active, b.modulation)
        normed, step = fed(layer.first[0], b.a)
        program.kernels(layer_norm_modulate.launch(b.h, b.modulation, normed, SHIFT, SCALE, LAYER_EPS, layer.norm, step))
        self._linear(program, layer.first, normed, b.b)
        inner, step = fed(layer.second[0], b.a)
        program.kernels(add_silu.launch(b.b, inner, scale=step))
        self._linear(program, layer.second, inner, b.b)
        program.kernels(gate_residual.launch(b.h, b.modulation, GATE, b.b, b.h))

    def _linear(self, program: Program, affine: Affine, x: Buffer, y: Buffer) -> None:
        program.linear(Linear(self._context.blas, x.shape[0], *affine), x, y)
