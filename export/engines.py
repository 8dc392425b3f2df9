"""The table of engines: which module, which inputs, which dimensions vary. Read by tracing, export and verification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_map

from hart_edge.runtime.diffusion import COEFFICIENTS
from hart_edge.runtime.spec import CODEBOOK, UNCONDITIONAL_K, UNCONDITIONAL_V, ModelSpec, cache_names

from . import modules
from .reference.embeddings import text_angles
from .reference.hart import HartReference
from .reference.quantizer import phi_index
from .reference.text import TextConditioner
from .reference.transformer import rotary

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
OPSET = 24
DECODER_OPSET = 18
"""ONNX Runtime's CUDA provider has InstanceNormalization up to opset 21 only; of a newer one it computes on the CPU."""

Shapes = tuple[Any, ...]


@dataclass(frozen=True)
class EngineTrace:
    """How one engine is traced: sample inputs (their values do not matter), varying dimensions, binding names, ONNX opset."""

    samples: tuple[Any, ...]
    dynamic: Shapes
    inputs: list[str]
    outputs: list[str]
    opset: int = OPSET

    def fresh_samples(self) -> tuple[Any, ...]:
        """The samples with no tensor object twice: the tracer would take equal objects for one input."""
        return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, self.samples)


def model_spec(model: HartReference) -> ModelSpec:
    """The facts that the runtime needs."""
    t, v = model.transformer.config, model.vae.config
    scales = len(v.patch_nums)
    return ModelSpec(
        patch_nums=v.patch_nums,
        phi_index=tuple(phi_index(i, scales, v.share_quant_resi) for i in range(scales - 1)),
        context_tokens=t.context_token,
        context_dim=t.context_dim,
        depth=t.depth,
        width=t.embed_dim,
        heads=t.num_heads,
        codebook_size=v.vocab_size,
        latent_channels=v.z_channels,
        diffusion_width=t.diff_width,
        diffusion_steps=t.num_sampling_steps,
        downsample=v.downsample,
    )


def engine_builders(model: HartReference, text: TextConditioner | None, precision: str) -> dict[str, Callable[[], nn.Module]]:
    """A builder per engine, in the order of use; each call makes the module in the precision's types."""
    dtype, t = DTYPES[precision], model.transformer
    builders: dict[str, Callable[[], nn.Module]] = {
        "context": lambda: modules.ContextEntry(model).to(dtype),
        "transformer": lambda: modules.Transformer(model).to(dtype),
        "transition": lambda: modules.Transition(model, dtype),
        "residual_condition": lambda: modules.ResidualCondition(model).to(dtype),
        "residual_step": lambda: modules.ResidualStep(t.diffloss.net, dtype).to(dtype),
        "decoder": lambda: modules.PictureDecoder(model, dtype).to(dtype),
    }
    if text is None:
        return builders
    return {"text_encoder": lambda: modules.TextEncoder(text.model, text.system_ids, text.context_tokens).to(dtype), **builders}


@torch.no_grad()
def constants(model: HartReference, precision: str) -> dict[str, Tensor]:
    """Tensors that the runtime itself needs.

    The unconditional context is T equal tokens at position 0. Attention over equal tokens returns their value, so one
    token through the blocks gives the keys and values of all.
    """
    t = model.transformer
    x = t.embed_context(torch.zeros(1, 1, t.config.context_dim)) + t.level(0)
    caches = t.new_cache()
    t.run_blocks(x, rotary(*text_angles(torch.zeros(1, 1), t.config.head_dim)), caches)
    stacked = (torch.stack([getattr(cache, part)[0, :, 0] for cache in caches]) for part in "kv")
    k, v = (part.to(DTYPES[precision]) for part in stacked)
    return {CODEBOOK: model.vae.quantize.embedding.weight.float(), UNCONDITIONAL_K: k, UNCONDITIONAL_V: v}


def trace_of(name: str, spec: ModelSpec, precision: str) -> EngineTrace:
    """Sample inputs and dimension names of one engine."""
    return _TRACES[name](spec, DTYPES[precision])


def _text(spec: ModelSpec, dtype: torch.dtype) -> EngineTrace:
    ids = torch.ones(2, spec.context_tokens, dtype=torch.int64)
    batch = Dim("B", min=1, max=1024)
    return EngineTrace((ids, ids), ({0: batch}, {0: batch}), ["input_ids", "attention_mask"], ["context"])


def _context(spec: ModelSpec, dtype: torch.dtype) -> EngineTrace:
    context = torch.zeros(2, spec.context_tokens, spec.context_dim, dtype=dtype)
    return EngineTrace((context,), ({0: Dim("B", min=1, max=1024)},), ["context"], ["x", "head_scale", "head_shift"])


def _transformer(spec: ModelSpec, dtype: torch.dtype) -> EngineTrace:
    rows, tokens = Dim("R", min=1, max=2048), Dim("L", min=1, max=1 << 20)
    x = torch.zeros(3, 5, spec.width, dtype=dtype)
    rope = torch.zeros(3, 1, 5, spec.head_dim, dtype=dtype)
    head = torch.zeros(3, 1, spec.width, dtype=dtype)
    index = torch.zeros(3, dtype=torch.int64)
    cache = torch.zeros(3, spec.heads, spec.cache_length, spec.head_dim, dtype=dtype)
    names = [cache_names(i) for i in range(spec.depth)]
    count = 2 * spec.depth
    return EngineTrace(
        samples=(x, rope, rope, head, head, index, index, [cache] * count),
        dynamic=({0: rows, 1: tokens}, {0: rows, 2: tokens}, {0: rows, 2: tokens}, *[{0: rows}] * 4, [{0: rows}] * count),
        inputs=[
            "x",
            "rope_cos",
            "rope_sin",
            "head_scale",
            "head_shift",
            "position",
            "length",
            *(n for k, v, _, _ in names for n in (k, v)),
        ],
        outputs=["hidden", "logits", *(n for _, _, k, v in names for n in (k, v))],
    )


def _transition(spec: ModelSpec, dtype: torch.dtype) -> EngineTrace:
    batch, side, following = Dim("B", min=1, max=1024), Dim("p", min=1, max=spec.grid), Dim("q", min=1, max=spec.grid)
    one = torch.zeros(1, dtype=torch.int64)
    samples = (
        torch.zeros(2, spec.latent_channels, 3, 3),
        torch.zeros(2, spec.latent_channels, spec.grid, spec.grid),
        torch.zeros(spec.grid, 3),
        torch.zeros(4, spec.grid),
        one,
        one,
    )
    dynamic = ({0: batch, 2: side, 3: side}, {0: batch}, {1: side}, {0: following}, None, None)
    return EngineTrace(samples, dynamic, ["h", "f_hat", "up", "pool", "scale", "phi"], ["f_hat_next", "x"])


def _residual_condition(spec: ModelSpec, dtype: torch.dtype) -> EngineTrace:
    batch, tokens = Dim("B", min=1, max=1024), spec.grid**2
    samples = (torch.zeros(4, tokens, spec.width, dtype=dtype), torch.zeros(2, tokens, dtype=torch.int64))
    return EngineTrace(samples, ({0: 2 * batch}, {0: batch}), ["hidden", "index"], ["condition"])


def _residual_step(spec: ModelSpec, dtype: torch.dtype) -> EngineTrace:
    rows = Dim("rows", min=1, max=1 << 24)
    x = torch.zeros(6, spec.latent_channels)
    samples = (x, torch.zeros(12, spec.diffusion_width, dtype=dtype), torch.zeros(1), torch.zeros(len(COEFFICIENTS)), x)
    names = ["x", "condition", "timestep", "coefficients", "noise"]
    return EngineTrace(samples, ({0: rows}, {0: 2 * rows}, None, None, {0: rows}), names, ["x_next", "prediction"])


def _decoder(spec: ModelSpec, dtype: torch.dtype) -> EngineTrace:
    f_hat = torch.zeros(2, spec.latent_channels, spec.grid, spec.grid)
    return EngineTrace((f_hat,), ({0: Dim("B", min=1, max=1024)},), ["f_hat"], ["image", "decoded"], DECODER_OPSET)


_TRACES: dict[str, Callable[[ModelSpec, torch.dtype], EngineTrace]] = {
    "text_encoder": _text,
    "context": _context,
    "transformer": _transformer,
    "transition": _transition,
    "residual_condition": _residual_condition,
    "residual_step": _residual_step,
    "decoder": _decoder,
}
