"""The scale loop with everything on the GPU: prompts and seeds go up, and nothing comes down but what is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hart_edge.plugins import transpose
from hart_edge.plugins.kernel import Buffer

from ..device_memory import DeviceMemory
from ..engine import DeviceTensor
from ..errors import EngineError
from ..noise import Noise, PhiloxNoise
from ..options import Options
from ..scale_loop import ScaleLoop, ScaleResult
from ..spec import CODEBOOK
from ..timing import StageTimes
from ..transformer import Conditioning
from .buffers import view
from .model import FusedModel
from .session import Session, Settings


class FusedLoop(ScaleLoop):
    """Runs one batch at a time; keeps buffers and CUDA graphs for the settings of the last one.

    With a low-VRAM model it keeps nothing: weights and buffers are freed before the last result is given out.

    Args:
        loop: the same, engine by engine, for those who run single parts of it (`hart-edge verify` does).
    """

    def __init__(self, model: FusedModel, memory: DeviceMemory, loop: ScaleLoop) -> None:
        super().__init__(loop.spec, loop.transformer, loop.transition, loop.diffusion, {CODEBOOK: loop.codebook}, memory)
        self._model, self._memory = model, memory
        self._session: Session | None = None
        self._ends = model.context.device.event(), model.context.device.event()
        self._runs = 0

    def run(self, conditioning: Conditioning, options: Options, noise: Noise, times: StageTimes) -> Iterator[ScaleResult]:
        """See `ScaleLoop.run`. A second run ends the first: they share their memory."""
        self._runs += 1
        this = self._runs
        try:
            yield from self._run(this, conditioning, options, noise, times)
        finally:
            self._end(this)

    def _run(self, this: int, conditioning: Conditioning, options: Options, noise: Noise, times: StageTimes) -> Iterator[ScaleResult]:
        last = self.spec.scales - 1
        with times("context"):
            session = self._prepare(conditioning.batch, options, noise)
            session.begin(conditioning, noise)
        for scale in range(last + 1):
            with times("transformer"):
                session.transform(scale)
            with times("sampling"):
                session.sample(scale, noise)
            with times("residual" if scale == last and options.residual else "transition"):
                if scale == last:
                    session.finish(noise)
                else:
                    session.advance(scale)
            result = self._result(session, scale)
            self._keep_pace(scale)
            if scale == last:
                self._end(this)  # the caller decodes before it comes back
            yield result
            if this != self._runs:
                raise EngineError("another generation was begun before this one ended.", "Finish or close one generation first.")

    def _keep_pace(self, scale: int) -> None:
        """Wait for the scale before this one: the GPU never idles, what is shown is nearly there, and a cancelled run ends soon."""
        self._ends[scale % 2].record(self._model.context.stream)
        if scale:
            self._ends[1 - scale % 2].synchronize()

    def _end(self, this: int) -> None:
        """Free what a low-VRAM run took, unless a later run has it."""
        if self._model.low_vram and this == self._runs:
            self.close()

    def _prepare(self, batch: int, options: Options, noise: Noise) -> Session:
        steps = options.diffusion_steps or self.spec.diffusion_steps
        settings = Settings(batch, options, steps, recorded=not isinstance(noise, PhiloxNoise))
        if self._session is None or self._session.settings != settings:
            self._drop_session()
            self._memory.trim()
            self._session = Session(self._model, settings)
        return self._session

    def _result(self, session: Session, scale: int) -> ScaleResult:
        """What the caller may keep: f_hat in the engines' layout, and the tokens, in memory of their own."""
        spec, batch, context = self.spec, session.settings.batch, self._model.context
        cells, channels, tokens = spec.grid**2, spec.latent_channels, session.tokens(scale)
        f_hat = self._memory.empty((batch, channels, spec.grid, spec.grid), np.float32)
        kept = self._memory.empty(tokens.shape, np.int64)
        context.launch(transpose.launch(session.buffers.f_hat, view(as_buffer(f_hat), batch, channels, cells)))
        context.copy(tokens, as_buffer(kept))
        return ScaleResult(scale, kept, f_hat)

    def close(self) -> None:
        """Free weights, buffers and graphs. Idempotent."""
        self._drop_session()
        self._model.generator.close()

    def _drop_session(self) -> None:
        if self._session is not None:
            self._model.context.wait_to_free()
            self._session.close()
            self._session = None


def as_buffer(tensor: DeviceTensor) -> Buffer:
    """The same memory as launch builders name it."""
    return Buffer(tensor.address, tensor.shape, tensor.dtype.name)
