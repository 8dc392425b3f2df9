"""The exported modules in eager PyTorch against the reference: the step between the reference and ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import RELATIVE_NORM, relative_error

from hart_edge.export.checkpoint import Checkpoint
from hart_edge.export.engines import constants, engine_builders
from hart_edge.export.exporter import open_text
from hart_edge.export.reference.hart import Context, HartReference, Settings
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.rotary import image_tables, text_tables
from hart_edge.runtime.spec import UNCONDITIONAL_K, UNCONDITIONAL_V

LIMIT = RELATIVE_NORM["exported module"]
SYSTEM_PROMPT = "Write an enhanced prompt."


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> HartReference:
    return checkpoint.reference()


@pytest.fixture(scope="module")
def trace(model: HartReference) -> dict[str, torch.Tensor]:
    config = model.transformer.config
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, config.context_token, config.context_dim, generator=generator)
    positions = torch.arange(config.context_token).expand(2, -1)
    return model.generate(Context(hidden, positions), PhiloxNoise([1, 2]), Settings()) | {"context": hidden}


@pytest.mark.parametrize("system_prompt", [None, SYSTEM_PROMPT])
def test_text_encoder_with_and_without_baked_system_prompt(checkpoint: Checkpoint, model: HartReference, system_prompt: str | None) -> None:
    text = open_text(checkpoint, system_prompt)
    assert text is not None
    prompts = ["a lighthouse at dusk", "", "two red circles " * 20]
    tokens = text.tokenize(prompts)
    module = engine_builders(model, text, "fp32")["text_encoder"]()
    got = module(tokens.ids, tokens.mask)
    assert relative_error(got.numpy(), text.encode(tokens).numpy()) <= LIMIT


def test_system_prompt_changes_the_context(checkpoint: Checkpoint) -> None:
    plain, with_prompt = (open_text(checkpoint, prompt) for prompt in (None, SYSTEM_PROMPT))
    assert plain is not None and with_prompt is not None
    assert len(with_prompt.system_ids) > 0
    assert relative_error(with_prompt(["a tree"]).hidden.numpy(), plain(["a tree"]).hidden.numpy()) > 1e-3


def test_context_entry(model: HartReference, trace: dict[str, torch.Tensor]) -> None:
    x, scale, shift = engine_builders(model, None, "fp32")["context"]()(trace["context"])
    for got, want in ((x, trace["x_0"][:2]), (scale, trace["head_scale"]), (shift, trace["head_shift"])):
        assert relative_error(got.numpy(), want.numpy()) <= LIMIT


def test_transformer_with_constant_unconditional_rows(model: HartReference, trace: dict[str, torch.Tensor]) -> None:
    """Scale 0 runs two rows only; scale 1 attends to the constants of the other two."""
    config, extra = model.transformer.config, constants(model, "fp32")
    module = engine_builders(model, None, "fp32")["transformer"]()
    tokens, capacity = config.context_token, config.context_token + 4
    caches = [torch.zeros(4, config.num_heads, capacity, config.head_dim) for _ in range(2 * config.depth)]
    for layer in range(config.depth):
        for part, name in enumerate((UNCONDITIONAL_K, UNCONDITIONAL_V)):
            caches[2 * layer + part][2:, :, :tokens] = extra[name][layer][None, :, None]
    head = (trace["head_scale"], trace["head_shift"])
    cos, sin = text_tables(np.tile(np.arange(tokens), (2, 1)), config.head_dim)
    at = [torch.tensor([n] * 4) for n in (0, tokens, tokens + 4)]
    first = [cache[:2] for cache in caches]
    hidden, logits, *written = module(
        trace["x_0"][:2], *map(torch.from_numpy, (cos, sin)), *(h[:2] for h in head), at[0][:2], at[1][:2], first
    )
    assert relative_error(hidden.numpy(), trace["hidden_0"][:2].numpy()) <= LIMIT
    assert relative_error(logits.numpy(), trace["logits_0"][:2].numpy()) <= LIMIT
    caches = [torch.cat([new, old[2:]]) for new, old in zip(written, caches, strict=True)]
    offset = np.array([tokens - 1, tokens - 1, 0, 0])
    cos, sin = image_tables(2, model.patch_nums[-1], offset, config.head_dim)
    hidden, logits, *_ = module(trace["x_1"], *map(torch.from_numpy, (cos, sin)), *head, at[1], at[2], caches)
    assert relative_error(hidden.numpy(), trace["hidden_1"].numpy()) <= LIMIT
    assert relative_error(logits.numpy(), trace["logits_1"].numpy()) <= LIMIT


def test_decoder_rounds_to_eight_bits(model: HartReference, trace: dict[str, torch.Tensor]) -> None:
    image, decoded = engine_builders(model, None, "fp32")["decoder"]()(trace["f_hat_final"])
    assert relative_error(decoded.numpy(), trace["decoded"].numpy()) <= LIMIT
    exact = trace["image"].permute(0, 2, 3, 1) * 255
    assert image.dtype == torch.uint8
    assert float((image.float() - exact).abs().max()) <= 0.51
