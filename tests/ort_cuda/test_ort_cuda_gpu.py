"""The GPU backend on a card: engines and pictures against the CPU's, the recorded runs, memory, errors.

The recorded runs need fp32 bundles of their checkpoints (`hart-edge export`), in the folder that the environment
variable HART_EDGE_GOLDEN_BUNDLES names, each under the name of its recording.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from calls import inputs_of, outputs_of
from tolerances import assert_close, relative_error

from hart_edge.runtime import Bundle, EngineError, GpuMemoryError, HartError, Options, Pipeline, StageTimes
from hart_edge.runtime.backends import has_driver
from hart_edge.runtime.bundle import bundled_folder
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.device_sampling import DeviceSampledLoop
from hart_edge.runtime.engine import DeviceTensor
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.ort import OrtCpu
from hart_edge.runtime.ort_cuda import CUDA_GRAPHS, PROVIDER, OrtCuda, OrtCudaEngine, provider_options
from hart_edge.runtime.spec import cache_names

pytestmark = pytest.mark.gpu

ENGINES = ("text_encoder", "context", "transformer", "transition", "residual_condition", "residual_step", "decoder")
PROMPT = "two red circles above a blue square"
FP16 = 1e-2
"""Relative error of a tensor between two engines of fp16: the gate of `verify`."""


@pytest.fixture(scope="module")
def backend() -> Iterator[OrtCuda]:
    if not has_driver():
        pytest.skip("needs an NVIDIA driver")
    try:
        opened = OrtCuda()
    except HartError as error:
        pytest.skip(f"the backend does not start: {error}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(bundled_folder(), check_files=False)


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.open(bundle, backend="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def gpu(bundle: Bundle, backend: OrtCuda) -> Iterator[Pipeline]:
    """A pipeline of its own; `backend` is asked for only because it skips."""
    with Pipeline.open(bundle, backend="ort-cuda") as pipe:
        yield pipe


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_backend_starts() -> None:
    """Fails, where the others skip, on a machine with a driver whose backend does not start."""
    if not has_driver():
        pytest.skip("needs an NVIDIA driver")
    started, array = OrtCuda(), np.arange(19, dtype=np.float32)
    try:
        assert np.array_equal(started.memory.download(started.memory.upload(array)), array)
    finally:
        started.close()


def test_capture_is_accepted_where_it_is_asked_for(bundle: Bundle, backend: OrtCuda, name: str) -> None:
    with backend.open_engine(bundle.engine(name), name) as engine:
        assert engine.graphs == (name in CUDA_GRAPHS)


def compare(want: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> None:
    for key, array in want.items():
        if array.dtype == np.uint8:
            assert np.abs(array.astype(int) - got[key]).max() <= 8, key
        else:
            assert relative_error(got[key], array) <= FP16, key


@pytest.mark.parametrize("graphs", [True, False], ids=["captured", "plain"])
def test_engine_follows_the_cpu_call_after_call(bundle: Bundle, backend: OrtCuda, cpu: Pipeline, name: str, graphs: bool) -> None:
    """Three calls of one shape with other contents: a captured call that took a value for a constant would repeat it."""
    spec, reference = cpu.spec, cpu.engines[name]
    if graphs and name not in CUDA_GRAPHS:
        pytest.skip(f"{name} is not captured")
    with OrtCudaEngine(bundle.engine(name), name, backend.memory, graphs) as engine:
        for seed in range(3):
            want, got = outputs_of(name, spec, reference), outputs_of(name, spec, engine)
            inputs = inputs_of(name, spec, reference, seed)
            reference.run(inputs, want)
            engine.run(inputs, got)
            compare(want, got)


def test_captured_engine_serves_several_shapes(bundle: Bundle, backend: OrtCuda, cpu: Pipeline) -> None:
    with backend.open_engine(bundle.engine("transition"), "transition") as engine:
        for batch, scale in ((1, 0), (1, 4), (2, 4), (1, 0), (1, 8), (1, 4)):
            inputs = inputs_of("transition", cpu.spec, engine, scale, batch, scale)
            want, got = (outputs_of("transition", cpu.spec, engine, batch, scale) for _ in range(2))
            cpu.engines["transition"].run(inputs, want)
            engine.run(inputs, got)
            compare(want, got)


def test_cache_is_written_in_place_on_the_device(bundle: Bundle, backend: OrtCuda, cpu: Pipeline) -> None:
    spec, reference = cpu.spec, cpu.engines["transformer"]
    inputs = inputs_of("transformer", spec, reference, 19)
    want, got = outputs_of("transformer", spec, reference), outputs_of("transformer", spec, reference)
    pairs = [
        (cache, following) for layer in range(spec.depth) for cache, following in zip(*np.reshape(cache_names(layer), (2, 2)), strict=True)
    ]
    with backend.open_engine(bundle.engine("transformer"), "transformer") as engine:
        device = {cache: backend.memory.upload(inputs[cache]) for cache, _ in pairs}
        engine.run(inputs | device, got | {following: device[cache] for cache, following in pairs})
        reference.run(inputs, want | {following: inputs[cache] for cache, following in pairs})
        compare(want, got)
        compare({cache: inputs[cache] for cache, _ in pairs}, {cache: backend.memory.download(device[cache]) for cache, _ in pairs})


def test_only_shapes_are_computed_on_the_cpu(bundle: Bundle, backend: OrtCuda, name: str) -> None:
    """ONNX Runtime's own account of which nodes it placed where."""
    path = bundle.engine(name)
    nodes = placements(path, provider_options(backend.memory.stream.address, graphs=False, tf32=True))
    allowed = {"Shape", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Cast", "Add", "Mul", "Sub", "Div", "Range", "Constant"}
    others = {node: kind for node, kind in nodes.get("CPUExecutionProvider", {}).items() if node not in shape_arithmetic(path)}
    assert PROVIDER in nodes
    assert {node: kind for node, kind in others.items() if kind not in allowed} == {}


def placements(path: Path, provider: dict[str, str]) -> dict[str, dict[str, str]]:
    """Operator types by provider and name of the node."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(path), options, providers=[(PROVIDER, provider)])
    found: dict[str, dict[str, str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, {}).update({node.name: node.op_type for node in part.get_nodes()})
    return found


def shape_arithmetic(path: Path) -> set[str]:
    """Names of the nodes that compute from the shapes of tensors alone."""
    graph = pytest.importorskip("onnx").load(path, load_external_data=False).graph
    constants, shapes, names = {value.name for value in graph.initializer}, set(), set()
    for node in graph.node:
        computed = set(node.input) - constants
        if node.op_type == "Shape" or (computed and computed <= shapes):
            shapes.update(node.output)
            names.add(node.name)
    return names


@pytest.mark.parametrize("options", [None, Options(smooth=True, cfg=3.0), Options(residual=False)], ids=["own", "smooth", "codes"])
def test_tokens_and_latents_follow_the_cpu(cpu: Pipeline, gpu: Pipeline, options: Options | None) -> None:
    """In fp16 a token may flip on a tie, and what follows differs with it: the first scale agrees, and most tokens.

    That a flip is a tie, and that every engine is right with the reference's inputs, is what the gates of `verify` say.
    """
    conditioning = cpu.encode_text([PROMPT])
    runs = [list(pipe.loop.run(conditioning, options or pipe.defaults, PhiloxNoise([1]), StageTimes())) for pipe in (cpu, gpu)]
    agreement = [float(np.mean(a.tokens == b.tokens)) for a, b in zip(*runs, strict=True)]
    assert agreement[0] == 1, agreement
    assert np.mean(agreement) > 0.5, agreement
    for share, a, b in zip(agreement, *runs, strict=True):
        if share < 1:
            break
        assert relative_error(gpu.memory.download(b.f_hat), a.f_hat) <= 5e-2


def test_picture_of_a_latent_follows_the_cpu(cpu: Pipeline, gpu: Pipeline) -> None:
    *_, last = cpu.stream(PROMPT, seed=1)
    want = cpu.decode(last.f_hat).astype(float)
    for f_hat in (last.f_hat, gpu.memory.upload(last.f_hat)):
        assert 10 * np.log10(255**2 / np.mean((gpu.decode(f_hat) - want) ** 2)) > 40  # dB, the gate of `verify`


def test_logits_are_sampled_on_the_device_as_on_the_host(cpu: Pipeline, gpu: Pipeline) -> None:
    assert isinstance(gpu.loop, DeviceSampledLoop)
    for scale, smooth in ((0, True), (2, True), (9, True), (9, False)):
        rows, tokens = (2, cpu.spec.context_tokens) if scale == 0 else (4, cpu.spec.patch_nums[scale] ** 2)
        logits = np.random.default_rng(7).standard_normal((rows, tokens, cpu.spec.codebook_size), np.float32)
        arguments = (scale, logits, 2, Options(smooth=smooth), PhiloxNoise([3, 4]))
        (want_tokens, want), (got_tokens, got) = cpu.loop.sample(*arguments), gpu.loop.sample(*arguments)
        np.testing.assert_array_equal(got_tokens, want_tokens)
        assert_close(got, want, "smooth codes")


def test_batch_and_repetition(gpu: Pipeline) -> None:
    first, again = (np.asarray(gpu.generate(PROMPT, seed=3)) for _ in range(2))
    assert np.array_equal(first, again)
    together = gpu.generate_batch([PROMPT, "a green star"], seeds=[3, 4])
    assert np.mean(np.abs(np.asarray(together[0]).astype(int) - first)) < 8


def test_previews_come_from_the_device(gpu: Pipeline) -> None:
    *earlier, last = gpu.stream(PROMPT, seed=1)
    assert isinstance(earlier[0]._f_hat, DeviceTensor)
    assert {step.preview().size for step in (*earlier, last)} == {(gpu.spec.image_size,) * 2}


def test_memory_is_flat_over_twenty_pictures(gpu: Pipeline, backend: OrtCuda) -> None:
    free = []
    for seed in range(20):
        gpu.generate(PROMPT, seed=seed)
        gc.collect()
        free.append(backend._device.memory()[0])
    assert min(free[3:]) >= free[2], free


def test_closing_gives_the_memory_back(bundle: Bundle, backend: OrtCuda) -> None:
    def once() -> int:
        with Pipeline.open(bundle, backend="ort-cuda") as pipe:
            pipe.generate(PROMPT, seed=1)
        gc.collect()
        return backend._device.memory()[0]

    once()
    before = once()
    assert abs(before - once()) <= 64 << 20


def test_out_of_memory_says_what_to_do_and_the_process_goes_on(bundle: Bundle, cpu: Pipeline, gpu: Pipeline) -> None:
    want = np.asarray(gpu.generate(PROMPT, seed=5))
    with Device() as other:
        free, _ = other.memory()
        hog = other.buffer(free - (24 << 20))
        with pytest.raises(GpuMemoryError, match="memory"), Pipeline.open(bundle, backend="ort-cuda") as pipe:
            pipe.generate_batch([PROMPT] * 8, seeds=range(8))
        hog.close()
    assert np.array_equal(np.asarray(gpu.generate(PROMPT, seed=5)), want)


def test_auto_takes_the_gpu(bundle: Bundle, backend: OrtCuda) -> None:
    with Pipeline.open(bundle, backend="auto") as pipe:
        assert pipe.backend != OrtCpu.name
        assert pipe.generate(PROMPT, seed=1).size == (pipe.spec.image_size,) * 2


def test_bundled_model_passes_every_gate_of_verify(bundle: Bundle, backend: OrtCuda) -> None:
    from hart_edge.export.checkpoint import load_checkpoint
    from hart_edge.export.verify import verify_bundle

    report = verify_bundle(bundle, load_checkpoint("bundled"), [PROMPT], backend="ort-cuda")
    assert report.backend == "ort-cuda"
    assert report.failures() == [], [(check.stage, check.metric, check.value, check.where) for check in report.failures()]


@pytest.fixture(params=["A_smooth", "B_argmax"])
def recorded(request: pytest.FixtureRequest, backend: OrtCuda) -> Iterator[tuple[Path, Pipeline]]:
    """The folder of a recorded run and its engines on the GPU."""
    folder = os.environ.get("HART_EDGE_GOLDEN_BUNDLES")
    if not folder:
        pytest.skip("needs fp32 bundles of the recorded runs in the folder HART_EDGE_GOLDEN_BUNDLES")
    with Pipeline.open(Bundle(Path(folder) / request.param), backend="ort-cuda") as pipe:
        yield Path(__file__).parent.parent / "golden" / request.param, pipe


def test_recorded_runs_have_identical_tokens_in_fp32(recorded: tuple[Path, Pipeline]) -> None:
    from hart_edge.export.checkpoint import load_recorded_checkpoint
    from hart_edge.export.recording import load_recording, run_reference
    from hart_edge.export.verify.checks import Report
    from hart_edge.export.verify.engines import TeacherForced
    from hart_edge.export.verify.freerun import check_free_running
    from hart_edge.runtime.transformer import Conditioning

    folder, pipe = recorded
    checkpoint, call = load_recorded_checkpoint(folder)
    model, recording, report = checkpoint.reference(), load_recording(folder, call), Report(folder.name)
    reference = run_reference(model, recording)
    reference |= {name: value for name, value in recording.outputs.items() if name in reference}
    TeacherForced(pipe, model, recording, reference, report).run()
    check_free_running(pipe, Conditioning(recording.context, recording.position_ids), recording, reference, report)
    assert report.failures() == [], [(check.stage, check.metric, check.value, check.where) for check in report.failures()]
    agreement = [check.value for check in report.checks if check.metric == "token agreement"]
    assert agreement == [1.0]


def test_damaged_graph_is_an_engine_error(tmp_path: Path, backend: OrtCuda) -> None:
    path = tmp_path / "engine.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="decoder does not load"):
        OrtCudaEngine(path, "decoder", backend.memory, graphs=True)
