"""One call of each engine of a bundle, as arrays, with random contents that fit the model."""

from __future__ import annotations

import numpy as np

from hart_edge.runtime.diffusion import schedule
from hart_edge.runtime.engine import Engine
from hart_edge.runtime.resample import area_matrix, bicubic_matrix
from hart_edge.runtime.spec import ModelSpec, cache_names

Arrays = dict[str, np.ndarray]


def inputs_of(name: str, spec: ModelSpec, engine: Engine, seed: int, batch: int = 2, scale: int = 3) -> Arrays:
    """Arrays for every input of the engine; the same shapes for every seed."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    arrays = _MAKERS[name](spec, normal, random, batch, scale)
    return {key: np.ascontiguousarray(array, engine.inputs[key].dtype) for key, array in arrays.items()}


def outputs_of(name: str, spec: ModelSpec, engine: Engine, batch: int = 2, scale: int = 3) -> Arrays:
    """Empty arrays for every output that is no cache."""
    p, q, side, tokens = spec.patch_nums[scale], spec.patch_nums[scale + 1], spec.image_size, spec.grid**2
    rows, latent = batch * tokens, (batch, spec.latent_channels, spec.grid, spec.grid)
    shapes = {
        "text_encoder": {"context": (batch, spec.context_tokens, spec.context_dim)},
        "context": {"x": (batch, spec.context_tokens, spec.width)}
        | dict.fromkeys(("head_scale", "head_shift"), (2 * batch, 1, spec.width)),
        "transformer": {"hidden": (2 * batch, p * p, spec.width), "logits": (2 * batch, p * p, spec.codebook_size)},
        "transition": {"f_hat_next": latent, "x": (2 * batch, q * q, spec.width)},
        "residual_condition": {"condition": (2 * rows, spec.diffusion_width)},
        "residual_step": {"x_next": (rows, spec.latent_channels), "prediction": (rows, 2 * spec.latent_channels)},
        "decoder": {"image": (batch, side, side, 3), "decoded": (batch, 3, side, side)},
    }
    return {key: np.zeros(shape, engine.outputs[key].dtype) for key, shape in shapes[name].items()}


def cache_of(spec: ModelSpec, dtype: np.dtype, seed: int, batch: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values of every layer, [2B, H, cache_length, D]."""
    random = np.random.default_rng(seed)
    shape = (2 * batch, spec.heads, spec.cache_length, spec.head_dim)
    return [
        (random.standard_normal(shape, np.float32).astype(dtype), random.standard_normal(shape, np.float32).astype(dtype))
        for _ in range(spec.depth)
    ]


def _text(spec, normal, random, batch, scale):
    mask = np.arange(spec.context_tokens) < random.integers(3, spec.context_tokens, (batch, 1))
    return {"input_ids": random.integers(1, 50, (batch, spec.context_tokens)), "attention_mask": mask}


def _context(spec, normal, random, batch, scale):
    return {"context": normal(batch, spec.context_tokens, spec.context_dim)}


def _transformer(spec, normal, random, batch, scale):
    rows, tokens = 2 * batch, spec.patch_nums[scale] ** 2
    position = np.full(rows, sum(spec.input_tokens(i) for i in range(scale)))
    rope = {name: normal(rows, 1, tokens, spec.head_dim) for name in ("rope_cos", "rope_sin")}
    head = {name: normal(rows, 1, spec.width) for name in ("head_scale", "head_shift")}
    cache = cache_of(spec, np.dtype("float16"), int(random.integers(1 << 30)), batch)
    pairs = {name: array for layer, pair in enumerate(cache) for name, array in zip(cache_names(layer)[:2], pair, strict=True)}
    return {"x": normal(rows, tokens, spec.width), **rope, **head, "position": position, "length": position + tokens, **pairs}


def _transition(spec, normal, random, batch, scale):
    p, q, z, g = spec.patch_nums[scale], spec.patch_nums[scale + 1], spec.latent_channels, spec.grid
    numbers = {"scale": random.integers(0, spec.scales - 1, 1), "phi": random.integers(0, max(spec.phi_index) + 1, 1)}
    resizing = {"up": bicubic_matrix(p, g), "pool": area_matrix(g, q)}
    return {"h": normal(batch, z, p, p), "f_hat": normal(batch, z, g, g), **resizing, **numbers}


def _residual_condition(spec, normal, random, batch, scale):
    tokens = spec.grid**2
    return {"hidden": normal(2 * batch, tokens, spec.width), "index": random.integers(0, spec.codebook_size, (batch, tokens))}


def _residual_step(spec, normal, random, batch, scale):
    rows, step = batch * spec.grid**2, int(random.integers(1, 8))  # the first step multiplies rounding by thousands
    coefficients = np.append(schedule(8)[step], random.uniform(0, 3))
    latents = {name: normal(rows, spec.latent_channels) for name in ("x", "noise")}
    return {**latents, "condition": normal(2 * rows, spec.diffusion_width), "timestep": [999 - 100 * step], "coefficients": coefficients}


def _decoder(spec, normal, random, batch, scale):
    return {"f_hat": normal(batch, spec.latent_channels, spec.grid, spec.grid)}


_MAKERS = {
    "text_encoder": _text,
    "context": _context,
    "transformer": _transformer,
    "transition": _transition,
    "residual_condition": _residual_condition,
    "residual_step": _residual_step,
    "decoder": _decoder,
}
