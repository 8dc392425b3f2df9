"""Text encoder and decoder of a generation: buffers and work for one batch size, kept until another one is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from hart_edge.plugins import Buffer, transpose

from ..engine import Array
from ..errors import BundleError
from ..spec import REEXPORT
from .decoder import DecoderBuffers, FusedDecoder
from .model import FusedModel, ModelPlan
from .parts import Part
from .program import Program
from .text import TextBuffers, TextWeights, add_text, put_system, set_prompt
from .weights import Weights
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
            self._drop()
            self._load()
            self._workspace = Workspace(self.context.device, self.context.stream, self._plan(batch), self._name)
            program = Program(self.context)
            self._fill(self._workspace, batch, program)
            self._begin()
            self._program, self._batch = program, batch
        return self._program

    def foresee(self, batch: int) -> None:
        """Plan what the libraries compute for that batch, by putting the work together once for nobody: nothing runs, and no memory is
        taken but what cuDNN's plans need as scratch."""
        self._fill(self._plan(batch), batch, Program(self.context))

    _name: str

    @abstractmethod
    def _load(self) -> None:
        """Have the weights on the device."""

    @abstractmethod
    def _plan(self, batch: int) -> Plan:
        """All buffers."""

    @abstractmethod
    def _fill(self, memory: Memory, batch: int, program: Program) -> None:
        """Put the work together."""

    @abstractmethod
    def _begin(self) -> None:
        """Put into the buffers what they must hold before the first run."""

    @abstractmethod
    def close(self) -> None:
        """Free weights, buffers and graph. Idempotent."""

    def _drop(self) -> None:
        if self._workspace is not None:
            self.context.wait_to_free()
            if self._program is not None:
                self._program.close()
            self._workspace.close()
        self._program = self._workspace = None


class TextStage(_Stage):
    """ids and mask [B, T] int64 → context [B·T, Ct] on the device."""

    _name = "text encoder"

    def __init__(self, model: FusedModel) -> None:
        super().__init__(model)
        if model.text is None:
            raise BundleError(f"bundle {model.bundle.root} has no text encoder.", REEXPORT)
        self._part: Part[TextWeights] = model.text

    def run(self, ids: Array, mask: Array) -> Buffer:
        program = self._prepare(ids.shape[0])
        set_prompt(self.context, self._part.get(), self._buffers, ids, mask)
        program.run()
        return self._buffers.out

    def close(self) -> None:
        self._drop()
        self._part.close()

    def _load(self) -> None:
        self._part.get()

    def _plan(self, batch: int) -> Plan:
        return plan_text(self._part.plan.sizes, batch)

    def _fill(self, memory: Memory, batch: int, program: Program) -> None:
        weights = self._part.get()
        self._buffers = TextBuffers.plan(memory, weights, batch)
        add_text(program, self.context, weights, self._buffers, self.model.facts.text_eps)

    def _begin(self) -> None:
        put_system(self.context, self._part.get(), self._buffers)


@dataclass(frozen=True)
class PictureBuffers:
    """f_hat [B, Z, G·G] float32 in, cells [B, G·G, Z] the same channels last, image [B, H, W, 3] uint8 out."""

    f_hat: Buffer
    cells: Buffer
    image: Buffer
    decoder: DecoderBuffers

    @classmethod
    def plan(cls, memory: Memory, model: ModelPlan, weights: Weights, batch: int) -> PictureBuffers:
        spec = model.spec
        cells, channels, side = spec.grid**2, spec.latent_channels, spec.image_size
        return cls(
            f_hat=memory.buffer("f_hat", (batch, channels, cells), "float32"),
            cells=memory.buffer("f_hat channels last", (batch, cells, channels), "float32"),
            image=memory.buffer("image", (batch, side, side, 3), "uint8"),
            decoder=DecoderBuffers.plan(memory, weights, spec.grid, batch, model.dtype),
        )


class DecoderStage(_Stage):
    """f_hat [B, Z, G·G] float32 on the device → `image` [B, H, W, 3] uint8 and `decoded` [B, H, W, 3], not clamped."""

    _name = "decoder"

    def run(self, f_hat: Buffer) -> None:
        program = self._prepare(f_hat.shape[0])
        self.context.copy(f_hat, self._buffers.f_hat)
        program.run()

    @property
    def image(self) -> Buffer:
        return self._buffers.image

    @property
    def decoded(self) -> Buffer:
        return self._decoder.decoded

    def close(self) -> None:
        self._drop()
        self.model.decoder.close()

    def _load(self) -> None:
        self.model.decoder.get()

    def _plan(self, batch: int) -> Plan:
        return plan_decoder(self.model.plan, batch)

    def _fill(self, memory: Memory, batch: int, program: Program) -> None:
        weights = self.model.decoder.get()
        self._buffers = buffers = PictureBuffers.plan(memory, self.model.plan, weights, batch)
        self._decoder = FusedDecoder(self.context, weights, buffers.decoder, self.model.convolutions)
        program.kernels(transpose.launch(buffers.f_hat, buffers.cells))
        self._decoder.add_to(program, buffers.cells)
        self._decoder.add_pixels(program, buffers.image)

    def _begin(self) -> None:
        """Nothing: a run writes what it reads."""


def foresee(model: FusedModel) -> None:
    """Plan the text encoder's products and the decoder's convolutions for one picture, which the first one then need not wait for.

    Call it once all parts have begun: the weights themselves may still be on their way to the GPU.
    """
    if model.text is not None:
        TextStage(model).foresee(1)
    DecoderStage(model).foresee(1)


def plan_text(weights: TextWeights, batch: int) -> Plan:
    """All buffers of the text encoder."""
    plan = Plan()
    TextBuffers.plan(plan, weights, batch)
    return plan


def plan_decoder(model: ModelPlan, batch: int) -> Plan:
    """All buffers of the decoder."""
    plan = Plan()
    PictureBuffers.plan(plan, model, model.decoder.sizes, batch)
    return plan
