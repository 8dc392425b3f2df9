"""Names, types and shapes of the engines' tensors, as the exported graphs have them."""

from __future__ import annotations

import numpy as np

from ..engine import TensorInfo
from ..spec import ModelSpec, cache_names

Infos = dict[str, TensorInfo]
Shape = tuple[int | str, ...]


def engine_infos(spec: ModelSpec, dtype: str, has_text: bool) -> dict[str, tuple[Infos, Infos]]:
    """Inputs and outputs of every engine by name; dtype: of the networks."""
    infos = {
        "context": _context(spec, dtype),
        "transformer": _transformer(spec, dtype),
        "transition": _transition(spec, dtype),
        "residual_condition": _residual_condition(spec, dtype),
        "residual_step": _residual_step(spec, dtype),
        "decoder": _decoder(spec),
    }
    return {"text_encoder": _text_encoder(spec, dtype), **infos} if has_text else infos


def _text_encoder(spec: ModelSpec, dtype: str) -> tuple[Infos, Infos]:
    prompt: Shape = ("B", spec.context_tokens)
    return (
        _of(input_ids=("int64", prompt), attention_mask=("int64", prompt)),
        _of(context=(dtype, ("B", spec.context_tokens, spec.context_dim))),
    )


def _context(spec: ModelSpec, dtype: str) -> tuple[Infos, Infos]:
    head: tuple[str, Shape] = (dtype, ("2*B", 1, spec.width))
    return (
        _of(context=(dtype, ("B", spec.context_tokens, spec.context_dim))),
        _of(x=(dtype, ("B", spec.context_tokens, spec.width)), head_scale=head, head_shift=head),
    )


def _transformer(spec: ModelSpec, dtype: str) -> tuple[Infos, Infos]:
    hidden: tuple[str, Shape] = (dtype, ("R", "L", spec.width))
    table: tuple[str, Shape] = (dtype, ("R", 1, "L", spec.head_dim))
    head: tuple[str, Shape] = (dtype, ("R", 1, spec.width))
    cache: tuple[str, Shape] = (dtype, ("R", spec.heads, spec.cache_length, spec.head_dim))
    inputs: dict[str, tuple[str, Shape]] = {"x": hidden, "rope_cos": table, "rope_sin": table, "head_scale": head, "head_shift": head}
    inputs |= {"position": ("int64", ("R",)), "length": ("int64", ("R",))}
    outputs: dict[str, tuple[str, Shape]] = {"hidden": hidden, "logits": ("float32", ("R", "L", spec.codebook_size))}
    for layer in range(spec.depth):
        k_in, v_in, k_out, v_out = cache_names(layer)
        inputs |= {k_in: cache, v_in: cache}
        outputs |= {k_out: cache, v_out: cache}
    return _of(**inputs), _of(**outputs)


def _transition(spec: ModelSpec, dtype: str) -> tuple[Infos, Infos]:
    z, grid = spec.latent_channels, spec.grid
    f_hat: tuple[str, Shape] = ("float32", ("B", z, grid, grid))
    return (
        _of(
            h=("float32", ("B", z, "p", "p")),
            f_hat=f_hat,
            up=("float32", (grid, "p")),
            pool=("float32", ("q", grid)),
            scale=("int64", (1,)),
            phi=("int64", (1,)),
        ),
        _of(f_hat_next=f_hat, x=(dtype, ("2*B", "q**2", spec.width))),
    )


def _residual_condition(spec: ModelSpec, dtype: str) -> tuple[Infos, Infos]:
    cells = spec.grid**2
    return (
        _of(hidden=(dtype, ("2*B", cells, spec.width)), index=("int64", ("B", cells))),
        _of(condition=(dtype, (f"{2 * cells}*B", spec.diffusion_width))),
    )


def _residual_step(spec: ModelSpec, dtype: str) -> tuple[Infos, Infos]:
    z = spec.latent_channels
    state: tuple[str, Shape] = ("float32", ("rows", z))
    return (
        _of(
            x=state,
            condition=(dtype, ("2*rows", spec.diffusion_width)),
            timestep=("float32", (1,)),
            coefficients=("float32", (8,)),
            noise=state,
        ),
        _of(x_next=state, prediction=("float32", ("rows", 2 * z))),
    )


def _decoder(spec: ModelSpec) -> tuple[Infos, Infos]:
    side = spec.image_size
    return (
        _of(f_hat=("float32", ("B", spec.latent_channels, spec.grid, spec.grid))),
        _of(image=("uint8", ("B", side, side, 3)), decoded=("float32", ("B", 3, side, side))),
    )


def _of(**tensors: tuple[str, Shape]) -> Infos:
    return {name: TensorInfo(name, np.dtype(dtype), shape) for name, (dtype, shape) in tensors.items()}
