"""Text encoder and decoder of a generation: buffers and work for one batch size, kept until another one is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hart_edge.plugins import Buffer, transpose

from ..engine import Array
from ..errors import BundleError
from ..spec import REEXPORT
from .decoder import FusedDecoder
from .model import FusedModel
from .program import Program
from .text import TextBuffers, TextWeights, add_text, put_system, set_prompt
from .workspace import Memory, Plan, Workspace


class _Stage(ABC):
    """What both share: a workspace and a program, made anew for another batch size."""

    def __init__(self, model: FusedModel) -> None:
        self.model, self.context = model, model.context
        self._batch = 0
        self._workspace: Workspace | None = None
        self._program: Program | None = None

    def _prepare(self, batch: int) -> Program:
        if self._program is None or batch != self._batch:
            self.close()
            plan = Plan()
            self._place(plan, batch)
            self._workspace = Workspace(self.context.device, self.context.stream, plan)
            self._place(self._workspace, batch)
            self._program = Program(self.context)
            self._fill(self._program)
            self._batch = batch
        return self._program

    @abstractmethod
    def _place(self, memory: Memory, batch: int) -> None:
        """Take all buffers from a memory."""

    @abstractmethod
    def _fill(self, program: Program) -> None:
        """Put the work together."""

    def close(self) -> None:
        """Idempotent."""
        if self._program is not None and self._workspace is not None:
            self.context.stream.synchronize()
            self._program.close()
            self._workspace.close()
        self._program = self._workspace = None


class TextStage(_Stage):
    """ids and mask [B, T] int64 → context [B·T, Ct] on the device."""

    def __init__(self, model: FusedModel) -> None:
        super().__init__(model)
        if model.text is None:
            raise BundleError(f"bundle {model.bundle.root} has no text encoder.", REEXPORT)
        self._weights: TextWeights = model.text

    def run(self, ids: Array, mask: Array) -> Buffer:
        program = self._prepare(ids.shape[0])
        set_prompt(self.context, self._weights, self._buffers, ids, mask)
        program.run()
        return self._out

    def _place(self, memory: Memory, batch: int) -> None:
        self._buffers = TextBuffers.plan(memory, self._weights, batch)
        width = self._weights.embedding.shape[1]
        self._out = memory.buffer("text.out", (batch * self._weights.tokens, width), self._weights.embedding.dtype)

    def _fill(self, program: Program) -> None:
        put_system(self.context, self._weights, self._buffers)
        add_text(program, self.context, self._weights, self._buffers, self._out, self.model.facts.text_eps)


class DecoderStage(_Stage):
    """f_hat [B, Z, G·G] float32 on the device → `image` [B, H, W, 3] uint8 and `decoded` [B, H, W, 3], not clamped."""

    def run(self, f_hat: Buffer) -> None:
        program = self._prepare(f_hat.shape[0])
        self.context.copy(f_hat, self._f_hat)
        program.run()

    @property
    def decoded(self) -> Buffer:
        return self._decoder.decoded

    def _place(self, memory: Memory, batch: int) -> None:
        model, spec = self.model, self.model.spec
        cells, channels, side = spec.grid**2, spec.latent_channels, spec.image_size
        self._f_hat = memory.buffer("f_hat", (batch, channels, cells), "float32")
        self._cells = memory.buffer("f_hat channels last", (batch, cells, channels), "float32")
        self.image = memory.buffer("image", (batch, side, side, 3), "uint8")
        self._decoder = FusedDecoder(self.context, model.weights, memory, model.convolutions, spec.grid, batch, model.dtype)

    def _fill(self, program: Program) -> None:
        program.kernels(transpose.launch(self._f_hat, self._cells))
        self._decoder.add_to(program, self._cells)
        self._decoder.add_pixels(program, self.image)
