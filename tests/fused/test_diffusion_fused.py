"""The residual diffusion against the exported modules and the bundle's engines; on the emulated GPU and on a real one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from components import allocated, put, rounded, run, weights_of
from tolerances import RELATIVE_NORM, relative_error
from torch import nn

from hart_edge.export.modules.residual import ResidualCondition, ResidualStep
from hart_edge.export.reference.diffusion import SimpleMLP
from hart_edge.export.reference.embeddings import TimestepEmbedder
from hart_edge.export.reference.transformer import RMSNorm
from hart_edge.plugins import Buffer
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.diffusion import RESIDUAL_GAIN, ResidualDiffusion, schedule, timesteps
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.diffusion import DiffusionBuffers, FusedDiffusion
from hart_edge.runtime.fused.diffusion_weights import DiffusionWeights, TimeEmbedding
from hart_edge.runtime.fused.program import Program
from hart_edge.runtime.fused.weights import DeviceWeights, Weights
from hart_edge.runtime.fused.workspace import Memory
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.ort import OrtEngine
from hart_edge.runtime.spec import ModelSpec

EPS = 1e-6
GUIDANCE = 1.5
SEEDS = (3, 2**63 + 5)


def modules(width: int, hidden: int, channels: int, codes: int, depth: int, dtype: str) -> tuple[ResidualCondition, ResidualStep]:
    """Condition and step with random weights."""
    torch.manual_seed(0)
    net = SimpleMLP(channels, hidden, width, depth)
    transformer = SimpleNamespace(
        decoder_norm=RMSNorm(hidden, EPS),
        config=SimpleNamespace(norm_eps=EPS),
        word_embed=nn.Linear(channels, hidden),
        diffloss=SimpleNamespace(net=net),
    )
    model: Any = SimpleNamespace(
        transformer=transformer, vae=SimpleNamespace(quantize=SimpleNamespace(embedding=nn.Embedding(codes, channels)))
    )
    condition, step = rounded(ResidualCondition(model), dtype), rounded(ResidualStep(net, torch.float32), dtype)
    assert isinstance(condition, ResidualCondition) and isinstance(step, ResidualStep)
    return condition, step


def facts(width: int, hidden: int, channels: int, grid: int) -> ModelSpec:
    """Of the spec, what the diffusion reads."""
    spec: Any = SimpleNamespace(grid=grid, latent_channels=channels, diffusion_width=width, width=hidden)
    return spec


class Inputs:
    """hidden [2B·L, C], index [B·L] and both kinds of noise for B images of grid · grid tokens."""

    def __init__(self, spec: ModelSpec, codes: int, batch: int, steps: int, dtype: str) -> None:
        r, length = np.random.default_rng(0), spec.grid**2
        self.hidden = r.standard_normal((2 * batch, length, spec.width)).astype(dtype)
        self.index = r.integers(0, codes, (batch, length))
        self.seeds = np.array(SEEDS[:batch], np.uint64)
        self.drawn = PhiloxNoise(SEEDS[:batch])
        shape = (length, spec.latent_channels)
        every = [[self.drawn.diffusion_init(j, shape) for j in range(batch)]]
        every += [[self.drawn.diffusion_step(j, k, shape) for j in range(batch)] for k in range(steps)]
        self.recorded = np.array(every, np.float32)

    def ask(self, memory: Memory) -> tuple[Buffer, Buffer, Buffer, Buffer]:
        batch, length = self.index.shape
        return (
            memory.buffer("hidden", (2 * batch * length, self.hidden.shape[2]), self.hidden.dtype.name),
            memory.buffer("index", (batch * length,), "int64"),
            memory.buffer("seeds", (batch,), "uint64"),
            memory.buffer("recorded", self.recorded.shape, "float32"),
        )


def sampled(context: FusedContext, weights: Weights, spec: ModelSpec, inputs: Inputs, seeded: bool, times: int = 1) -> tuple[Array, Array]:
    """The embedded condition [2B·L, W], and the residual [B, L, Z] after all steps."""
    batch, steps, dtype = inputs.index.shape[0], inputs.recorded.shape[0] - 1, inputs.hidden.dtype.name
    loaded = DiffusionWeights.load(weights)

    def ask(memory: Memory) -> tuple[DiffusionBuffers, tuple[Buffer, ...]]:
        return DiffusionBuffers.plan(memory, spec, batch, steps, dtype), inputs.ask(memory)

    with allocated(context, ask) as (buffers, given):
        for buffer, array in zip(given, (inputs.hidden, inputs.index, inputs.seeds, inputs.recorded), strict=True):
            put(context, buffer, array)
        hidden, index, seeds, recorded = given
        diffusion = FusedDiffusion(context, loaded, buffers, EPS)

        def add(program: Program) -> None:
            diffusion.add_condition(program, hidden, index)
            diffusion.add_sampling(program, GUIDANCE, seeds if seeded else recorded)

        run(context, add, times)
        return context.download(buffers.condition), context.download(buffers.state)


def expected(condition: ResidualCondition, step: ResidualStep, inputs: Inputs) -> tuple[Array, Array]:
    """The same from the modules, in float32."""
    batch, length = inputs.index.shape
    embedded = condition(torch.from_numpy(inputs.hidden).float(), torch.from_numpy(inputs.index))
    x = torch.from_numpy(inputs.recorded[0]).flatten(0, 1)
    steps = inputs.recorded.shape[0] - 1
    for k, (t, constants) in enumerate(zip(timesteps(steps)[::-1], schedule(steps), strict=True)):
        coefficients = torch.from_numpy(np.append(constants, np.float32(GUIDANCE)))
        noise = torch.from_numpy(inputs.recorded[1 + k]).flatten(0, 1)
        x, _ = step(x, embedded, torch.tensor([float(t)]), coefficients, noise)
    return embedded.numpy(), (x * float(RESIDUAL_GAIN)).view(batch, length, -1).numpy()


SIZES = [(64, 96, 32, 8, 2), (13, 19, 5, 3, 1), (24, 40, 6, 5, 2)]
"""Width of the MLP, of the transformer, latent channels, grid, batch."""


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [1, 3])
def test_random_diffusion(context: FusedContext, tmp_path: Path, size: tuple[int, ...], dtype: str, steps: int) -> None:
    width, hidden, channels, grid, batch = size
    condition, step = modules(width, hidden, channels, 11, 2, dtype)
    spec = facts(width, hidden, channels, grid)
    inputs = Inputs(spec, 11, batch, steps, dtype)
    with weights_of(context, tmp_path, dtype, residual_condition=condition, residual_step=step) as weights:
        embedded, residual = sampled(context, weights, spec, inputs, seeded=False)
    wanted, result = expected(condition, step, inputs)
    assert relative_error(embedded, wanted) < RELATIVE_NORM[f"many layers {dtype}"]
    assert relative_error(residual, result) < RELATIVE_NORM[f"sampled {dtype}"]


@pytest.mark.parametrize("seeded", [False, True])
def test_bundled_diffusion(context: FusedContext, seeded: bool) -> None:
    """Against the engines, also as a graph; the noise drawn on the GPU is the noise that the engines get. Every stored weight is taken."""
    bundle = Bundle(bundled_folder())
    spec, steps = bundle.spec, 8
    inputs = Inputs(spec, spec.codebook_size, 2, steps, "float16")
    engines = [OrtEngine(bundle.engine(name), name) for name in ("residual_condition", "residual_step")]
    on_cpu = ResidualDiffusion(spec, engines[0], engines[1])
    wanted = on_cpu.condition(inputs.hidden, inputs.index)
    result = on_cpu.sample(wanted, 2, GUIDANCE, steps, inputs.drawn)
    with DeviceWeights(bundle, context) as weights:
        embedded, residual = sampled(context, weights, spec, inputs, seeded, times=3)
        assert {name for name in weights.names if name.startswith("residual_")} == weights.used
    assert relative_error(embedded, wanted) < RELATIVE_NORM["many layers float16"]
    assert relative_error(residual, result) < RELATIVE_NORM["sampled float16"]


def test_one_step_and_its_prediction(context: FusedContext, tmp_path: Path) -> None:
    """What verification asks for: one step at any timestep, with the guided (eps, v)."""
    width, hidden, channels, grid, batch = SIZES[2]
    condition, step = modules(width, hidden, channels, 11, 2, "float32")
    spec = facts(width, hidden, channels, grid)
    inputs = Inputs(spec, 11, batch, 1, "float32")
    rows = batch * grid * grid
    embedded = torch.randn(2 * rows, width)
    coefficients = np.append(schedule(8)[3], np.float32(GUIDANCE))

    def ask(memory: Memory) -> tuple[DiffusionBuffers, Buffer, Buffer]:
        buffers = DiffusionBuffers.plan(memory, spec, batch, 1, "float32")
        return buffers, memory.buffer("noise", buffers.state.shape, "float32"), memory.buffer("prediction", (rows, 2 * channels), "float32")

    with weights_of(context, tmp_path, "float32", residual_condition=condition, residual_step=step) as weights:
        loaded = DiffusionWeights.load(weights)
        with allocated(context, ask) as (buffers, noise, prediction):
            put(context, buffers.state, inputs.recorded[0])
            put(context, noise, inputs.recorded[1])
            put(context, buffers.condition, embedded.numpy())
            put(context, buffers.times, loaded.time.rows([428.0]))
            diffusion = FusedDiffusion(context, loaded, buffers, EPS)
            time = Buffer(buffers.times.address, (width,), "float32")

            def add(program: Program) -> None:
                diffusion.add_input(program)
                diffusion.add_network(program, time)
                diffusion.add_update(program, coefficients.tolist(), noise, prediction=prediction)

            run(context, add)
            earlier, guided = context.download(buffers.state), context.download(prediction)
    x, noise_in = (torch.from_numpy(inputs.recorded[i]).flatten(0, 1) for i in (0, 1))
    wanted, predicted = step(x, embedded, torch.tensor([428.0]), torch.from_numpy(coefficients), noise_in)
    assert relative_error(earlier.reshape(rows, -1), wanted) < RELATIVE_NORM["many layers float32"]
    assert relative_error(guided, predicted) < RELATIVE_NORM["many layers float32"]


@pytest.mark.parametrize("width", [13, 64])
def test_time_embedding_is_the_reference(width: int) -> None:
    module = rounded(TimestepEmbedder(width), "float32")
    layers = [(module.mlp[i].weight.T.numpy(), module.mlp[i].bias.numpy()) for i in (0, 2)]
    steps = [999.0, 428.0, 0.0]
    expected = module(torch.tensor(steps))
    assert relative_error(TimeEmbedding(layers[0], layers[1]).rows(steps), expected) < RELATIVE_NORM["many layers float32"]
