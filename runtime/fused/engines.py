"""The seven engines of a bundle over the fused engine's parts: what `hart-edge verify` runs one by one.

Arrays are copied there and back; device tensors are worked on where they are. A generation comes here only for its text
encoder and its decoder, whose work is put together once per batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

import numpy as np

from hart_edge.plugins import Buffer, Launch, next_scale, rope_tables, transpose

from ..device_memory import DeviceMemory
from ..engine import Array, DeviceTensor, TensorInfo, Tensors, check_call
from ..errors import EngineError
from ..spec import cache_names
from .blocks import Caches, Layers, Pass, Scratch
from .buffers import view
from .calls import Call
from .conditioning import ContextBuffers, add_context
from .diffusion import DiffusionBuffers, FusedDiffusion
from .infos import engine_infos
from .model import FusedModel
from .stages import DecoderStage, TextStage


class FusedEngine:
    """One engine of the bundle. Implements `Engine`.

    Args:
        compute: puts together the work of one call.
        release: frees what the engine keeps between calls; with a low-VRAM model, after every call.
    """

    def __init__(
        self,
        name: str,
        model: FusedModel,
        memory: DeviceMemory,
        compute: Callable[[Call], None],
        release: Callable[[], object] = lambda: None,
    ) -> None:
        self.name, self._model, self._memory, self._compute, self._release = name, model, memory, compute, release
        self.inputs: dict[str, TensorInfo]
        self.outputs: dict[str, TensorInfo]
        self.inputs, self.outputs = engine_infos(model.spec, model.dtype, model.text is not None)[name]
        self._open = True

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """See `Engine.run`."""
        if not self._open:
            raise EngineError(f"engine {self.name} is closed.", "Load the bundle again.")
        check_call(self, inputs, outputs)
        if not self._model.low_vram:
            self._run(inputs, outputs)
            return
        self._memory.trim()
        try:
            self._run(inputs, outputs)
        finally:
            self._release()

    def _run(self, inputs: Tensors, outputs: Tensors) -> None:
        call = Call(self._model, self._memory, inputs, outputs)
        self._compute(call)
        call.finish()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._release()

    def __enter__(self) -> FusedEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


Compute = Callable[[Call], None]


def open_fused(name: str, model: FusedModel, memory: DeviceMemory) -> FusedEngine:
    """The engine of that name."""
    simple: dict[str, Compute] = {
        "context": _context,
        "transformer": _transformer,
        "transition": _transition,
        "residual_condition": _residual_condition,
        "residual_step": _residual_step,
    }
    if name == "text_encoder":
        text = TextStage(model)
        return FusedEngine(name, model, memory, lambda call: _text_encoder(call, text), text.close)
    if name == "decoder":
        decoder = DecoderStage(model)
        return FusedEngine(name, model, memory, lambda call: _decoder(call, decoder), decoder.close)
    return FusedEngine(name, model, memory, simple[name])


def _text_encoder(call: Call, stage: TextStage) -> None:
    ids, mask = call.host("input_ids"), call.host("attention_mask")
    out = call.output("context")
    context = stage.run(ids, mask)
    call.program.copy(context, view(out, *context.shape))


def _decoder(call: Call, stage: DecoderStage) -> None:
    f_hat = call.input("f_hat")
    batch, channels, height, width = f_hat.shape
    stage.run(view(f_hat, batch, channels, height * width))
    if "image" in call.outputs:
        call.program.copy(stage.image, call.output("image"))
    if "decoded" in call.outputs:
        picture = np.clip(stage.context.download(stage.decoded).astype(np.float32), -1, 1).transpose(0, 3, 1, 2)
        _fill(call, "decoded", np.ascontiguousarray(picture))


def _fill(call: Call, name: str, array: Array) -> None:
    """An output that was computed on the host."""
    wanted = call.outputs[name]
    if isinstance(wanted, DeviceTensor):
        call.memory.write(wanted, array)
    else:
        wanted[...] = array


def _context(call: Call) -> None:
    model, spec, weights = call.model, call.model.spec, call.model.generator.get()
    batch = call.inputs["context"].shape[0]
    tokens = batch * spec.context_tokens
    planned = ContextBuffers.plan(call, spec, batch, model.dtype)
    head = tuple(_asked(call, name, planned.head[i], 2 * batch, spec.width) for i, name in enumerate(("head_scale", "head_shift")))
    buffers = replace(planned, context=call.input("context", tokens, spec.context_dim), head=(head[0], head[1]))
    x = _asked(call, "x", call.buffer("x", (tokens, spec.width), model.dtype), tokens, spec.width)
    add_context(call.program, model.context, spec, weights.conditioning, buffers, x, model.facts.norm_eps)


def _asked(call: Call, name: str, scratch: Buffer, *shape: int) -> Buffer:
    """The output under another shape, or scratch where it was not asked for."""
    return call.output(name, *shape) if name in call.outputs else scratch


def _transformer(call: Call) -> None:
    model, spec, program, weights = call.model, call.model.spec, call.program, call.model.generator.get()
    r, length, width = call.inputs["x"].shape
    now = Pass(r, length, int(call.host("position")[0]))
    if int(call.host("length")[0]) != now.start + length:
        raise EngineError(f"engine transformer: length is {call.host('length')[0]}; expected position + L = {now.start + length}.")
    pairs = [cache_names(layer) for layer in range(spec.depth)]
    caches = Caches(
        k=tuple(call.changed(k_in, k_out) for k_in, _, k_out, _ in pairs), v=tuple(call.changed(v_in, v_out) for _, v_in, _, v_out in pairs)
    )
    x = _asked(call, "hidden", call.buffer("hidden", (now.count, width), model.dtype), now.count, width)
    program.copy(call.input("x", now.count, width), x)
    cos, sin = (call.input(name, r, length, spec.head_dim) for name in ("rope_cos", "rope_sin"))

    def rotate(layer: int, qkv: Buffer, q: Buffer, k: Buffer, v: Buffer) -> Launch:
        return rope_tables.launch(qkv, cos, sin, q, k, v, now.start, weights.transformer.layers[layer].gain)

    scratch = Scratch.plan(call, now.count, width, weights.transformer.hidden, model.dtype)
    layers = Layers(model.context, spec, weights.transformer, model.attentions, model.facts, biased=True)
    layers.add(program, now, x, scratch, caches, rotate)
    if "logits" in call.outputs:
        head = (call.input("head_scale", r, width), call.input("head_shift", r, width))
        layers.add_head_norm(program, x, head, scratch.normed)
        layers.add_logits(program, scratch.normed, call.output("logits", now.count, spec.codebook_size))


def _transition(call: Call) -> None:
    """The resizing matrices are not read: the kernels compute the same ones."""
    model, spec, program = call.model, call.model.spec, call.program
    batch, channels, side, _ = call.inputs["h"].shape
    scale, phi, cells = int(call.host("scale")[0]), int(call.host("phi")[0]), spec.grid**2
    h = call.buffer("h", (batch, side * side, channels), "float32")
    f_hat = call.buffer("f_hat", (batch, cells, channels), "float32")
    program.kernels(
        transpose.launch(call.input("h", batch, channels, side * side), h),
        transpose.launch(call.input("f_hat", batch, channels, cells), f_hat),
    )
    shape = (2 * batch, call.inputs["pool"].shape[0] ** 2, spec.width)
    x = _asked(call, "x", call.buffer("x", shape, model.dtype), *shape)
    weights = model.generator.get().transition
    ratio, level = model.facts.phi_ratio, weights.level(scale + 1)
    program.kernels(*next_scale.launches(h, f_hat, weights.phi[phi], ratio, weights.word, level, x))
    if "f_hat_next" in call.outputs:
        program.kernels(transpose.launch(f_hat, call.output("f_hat_next", batch, channels, cells)))


def _residual_condition(call: Call) -> None:
    model, spec, weights = call.model, call.model.spec, call.model.generator.get()
    batch, cells = call.inputs["index"].shape
    planned = DiffusionBuffers.plan(call, spec, batch, 1, model.dtype)
    buffers = replace(planned, condition=call.output("condition"))
    diffusion = FusedDiffusion(model.context, weights.diffusion, buffers, model.facts.norm_eps)
    diffusion.add_condition(call.program, call.input("hidden", 2 * batch * cells, spec.width), call.input("index", batch * cells))


def _residual_step(call: Call) -> None:
    model, spec, program, weights = call.model, call.model.spec, call.program, call.model.generator.get()
    count, cells = call.inputs["x"].shape[0], spec.grid**2
    if count % cells:
        raise EngineError(f"engine residual_step: x has {count} rows; expected a multiple of the latent's {cells} cells.")
    batch = count // cells
    buffers = replace(DiffusionBuffers.plan(call, spec, batch, 1, model.dtype), condition=call.input("condition"))
    model.context.upload(buffers.times, weights.diffusion.time.rows(call.host("timestep").tolist()))
    diffusion = FusedDiffusion(model.context, weights.diffusion, buffers, model.facts.norm_eps)
    program.copy(call.input("x", *buffers.state.shape), buffers.state)
    diffusion.add_input(program)
    diffusion.add_network(program, view(buffers.times, spec.diffusion_width))
    prediction = call.output("prediction") if "prediction" in call.outputs else None
    noise = call.input("noise", *buffers.state.shape)
    diffusion.add_update(program, call.host("coefficients").tolist(), noise, prediction=prediction)
    if "x_next" in call.outputs:
        program.copy(buffers.state, call.output("x_next", *buffers.state.shape))
