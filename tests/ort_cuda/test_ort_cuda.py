"""The GPU backend over a device of host memory: whole pictures, captured engines, errors. The card itself: test_ort_cuda_gpu.py."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from host_device import HostCuda, HostCudaEngine, HostDevice, HostKernels, host_memory
from tolerances import assert_close

from hart_edge.export.checkpoint import Checkpoint
from hart_edge.export.verify import verify_bundle
from hart_edge.runtime import (
    Bundle,
    EngineError,
    GpuLostError,
    GpuMemoryError,
    HartWarning,
    MissingPackageError,
    Options,
    Pipeline,
    device_sampling,
    ort_cuda,
)
from hart_edge.runtime import pipeline as pipeline_module
from hart_edge.runtime.bundle import bundled_folder
from hart_edge.runtime.device_sampling import DeviceSampledLoop
from hart_edge.runtime.engine import DeviceTensor
from hart_edge.runtime.noise import PhiloxNoise, RecordedNoise
from hart_edge.runtime.ort import OrtEngine
from hart_edge.runtime.ort_cuda import CUDA_GRAPHS, OrtCuda, provider_options
from hart_edge.runtime.timing import StageTimes

PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def cpu() -> Iterator[Pipeline]:
    with Pipeline.open(Bundle(bundled_folder(), check_files=False), backend="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture(scope="module")
def doubled(device: HostDevice) -> Iterator[Pipeline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_module, "open_backend", lambda name, threads, low_vram: HostCuda(device))
        pipe = Pipeline.open(Bundle(bundled_folder(), check_files=False), backend="ort-cuda")
    with pipe:
        yield pipe


@pytest.mark.parametrize("options", [Options(), Options(residual=False), Options(cfg=0, smooth=False)], ids=repr)
def test_device_tensors_do_not_change_a_picture(cpu: Pipeline, doubled: Pipeline, options: Options) -> None:
    want, got = (pipe.generate_batch(PROMPTS, seeds=[1, 2], options=options) for pipe in (cpu, doubled))
    assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))


def test_every_step_has_its_tokens_latent_and_preview(cpu: Pipeline, doubled: Pipeline) -> None:
    for want, got in zip(cpu.stream("a tree", seed=2), list(doubled.stream("a tree", seed=2)), strict=True):
        assert np.array_equal(want.tokens, got.tokens)
        assert isinstance(got.f_hat, np.ndarray)
        assert np.array_equal(want.f_hat, got.f_hat)
        assert np.array_equal(want.preview(), got.preview())


def test_what_passes_between_engines_stays_on_the_device(doubled: Pipeline) -> None:
    loop, conditioning = doubled.loop, doubled.encode_text(["a tree"])
    run, x = loop.transformer.begin(conditioning)
    hidden, logits = run.step(0, x)
    condition = np.zeros((2 * doubled.spec.grid**2, doubled.spec.width), hidden.dtype)
    tensors = [x, hidden, logits, *run.cache.bindings(2)[0].values(), loop.transition.initial(1)]
    tensors.append(
        loop.diffusion.condition(doubled.memory.upload(condition.reshape(2, -1, doubled.spec.width)), np.zeros((1, 256), np.int64))
    )
    assert all(isinstance(tensor, DeviceTensor) for tensor in tensors)
    *earlier, last = loop.run(conditioning, Options(), PhiloxNoise([1]), StageTimes())
    assert all(isinstance(result.f_hat, DeviceTensor) for result in earlier)
    assert isinstance(last.f_hat, np.ndarray)


def test_a_second_picture_allocates_nothing(doubled: Pipeline, device: HostDevice) -> None:
    doubled.generate("a tree", seed=1)
    before = device.allocations
    doubled.generate("a boat", seed=2, options=Options(cfg=3.0))
    assert device.allocations == before


def test_another_picture_begins_without_an_upload(doubled: Pipeline, device: HostDevice) -> None:
    """Its prompt is on the device, and the unconditional context's keys and values are there from the picture before, unchanged."""
    doubled.generate("a tree", seed=1)
    transformer, conditioning, tokens = doubled.loop.transformer, doubled.encode_text(["a tree"]), doubled.spec.context_tokens
    before = device.uploaded
    run, _ = transformer.begin(conditioning)
    assert device.uploaded == before
    transformer.caches.drop()  # there is none: the run has it
    fresh = transformer.caches.take(1)
    assert device.uploaded > before
    for name, kept in run.cache.bindings(2)[0].items():
        got, want = (doubled.memory.download(tensor)[1, :, :tokens] for tensor in (kept, fresh.bindings(2)[0][name]))
        np.testing.assert_array_equal(got, want)


def test_what_a_picture_leaves_in_the_cache_does_not_reach_the_next(cpu: Pipeline, doubled: Pipeline) -> None:
    """NaN wherever engines write: they read no position that this picture has not written."""
    tokens = doubled.spec.context_tokens
    run, _ = doubled.loop.transformer.begin(doubled.encode_text(["a tree"]))
    for tensor in run.cache.bindings(2)[0].values():
        content = doubled.memory.download(tensor)
        content[:1] = content[:, :, tokens:] = np.nan
        doubled.memory.write(tensor, content)
    cache = weakref.ref(run.cache)
    del run, tensor
    kept = cache()
    assert kept is not None and doubled.loop.transformer.caches.take(1) is kept
    doubled.loop.transformer.caches.give_back(kept)
    assert np.array_equal(doubled.generate("a tree", seed=1), cpu.generate("a tree", seed=1))


def test_two_streams_at_once_are_kept_apart(cpu: Pipeline, doubled: Pipeline) -> None:
    *_, last = zip(doubled.stream("a tree", seed=1), doubled.stream("a boat", seed=1), strict=True)
    assert all(np.array_equal(step.preview(), cpu.generate(p, seed=1)) for step, p in zip(last, ("a tree", "a boat"), strict=True))


def test_captured_engines_have_one_graph_per_shape(doubled: Pipeline) -> None:
    for engine in doubled.engines.values():
        engine.graph_ids.clear()
    doubled.generate("a tree", seed=1)
    ids = {name: engine.graph_ids for name, engine in doubled.engines.items()}
    assert {name for name, used in ids.items() if used} == CUDA_GRAPHS == set(ids) - {"transformer"}
    assert len(ids["transition"]) == len(set(ids["transition"])) == doubled.spec.scales - 1
    assert len(ids["residual_step"]) == doubled.spec.diffusion_steps
    assert len(set(ids["residual_step"])) == 1


def test_pipeline_tells_its_backend_and_closes_it(device: HostDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = HostCuda(device)
    monkeypatch.setattr(pipeline_module, "open_backend", lambda name, threads, low_vram: backend)
    with Pipeline.open(Bundle(bundled_folder(), check_files=False), backend="ort-cuda") as pipe:
        assert (pipe.backend, pipe.memory, backend.closed) == ("ort-cuda", backend.memory, False)
        assert '"backend": "ort-cuda"' in pipe.generate("a tree").info["hart-edge"]
    assert backend.closed


@pytest.fixture
def adder(tmp_path: Path) -> Path:
    path = tmp_path / "engine.onnx"
    text = "agraph (float[N, 3] a, float[N, 3] b) => (float[N, 3] sum, float[N, 3] product) { sum = Add(a, b) product = Mul(a, b) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 24]> {text}'), path)
    return path


def rows(count: int, value: float) -> np.ndarray:
    return np.full((count, 3), value, np.float32)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("where", [("host", "host"), ("host", "device"), ("device", "host"), ("device", "device")])
def test_arrays_and_device_tensors_mix(adder: Path, graphs: bool, where: tuple[str, str]) -> None:
    memory = host_memory(HostDevice())
    with HostCudaEngine(adder, "adder", memory, graphs) as engine:
        for value in (1.0, 5.0):
            a, total = rows(19, value), rows(19, 0)
            if where[0] == "device":
                a = memory.upload(a)
            if where[1] == "device":
                total = memory.upload(total)
            engine.run({"a": a, "b": rows(19, 2)}, {"sum": total})
            assert (memory.download(total) == value + 2).all()


def test_slots_are_by_shape_and_by_what_is_asked_for(adder: Path) -> None:
    memory = host_memory(HostDevice())
    with HostCudaEngine(adder, "adder", memory, True) as engine:
        for count, names in ((2, ["sum"]), (7, ["sum"]), (2, ["sum"]), (2, ["sum", "product"]), (7, ["sum"])):
            outputs = {name: rows(count, 0) for name in names}
            engine.run({"a": rows(count, 3), "b": rows(count, 4)}, outputs)
            assert all((outputs[name] == {"sum": 7, "product": 12}[name]).all() for name in names)
        assert engine.graph_ids == ["1", "2", "1", "3", "2"]


def test_engine_whose_capture_is_refused_runs_without(adder: Path) -> None:
    with HostCudaEngine(adder, "adder", host_memory(HostDevice()), True, refuse_graphs=True) as engine:
        total = rows(2, 0)
        engine.run({"a": rows(2, 3), "b": rows(2, 4)}, {"sum": total})
        assert (engine.graphs, engine.graph_ids, total[0, 0]) == (False, [], 7)


def test_closing_gives_the_memory_back_and_refuses_calls(adder: Path) -> None:
    device = HostDevice()
    memory = host_memory(device)
    engine = HostCudaEngine(adder, "adder", memory, True)
    engine.run({"a": rows(2, 3), "b": rows(2, 4)}, {"sum": rows(2, 0)})
    assert device.used == 3 * 24
    engine.close()
    memory.trim()
    assert device.used == 0
    with pytest.raises(EngineError, match="adder is closed"):
        engine.run({}, {})


class Failing:
    """A session that fails the first `times` calls with what ONNX Runtime says."""

    def __init__(self, message: str, times: int) -> None:
        self.message, self.times, self.calls = message, times, 0

    def io_binding(self) -> None:
        return None

    def run_with_iobinding(self, binding: None, options: None) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise RuntimeError(self.message)


def failing(adder: Path, memory: object, message: str, times: int) -> tuple[HostCudaEngine, Failing]:
    engine = HostCudaEngine(adder, "adder", memory, False)
    engine._session = Failing(message, times)
    engine._call = lambda session, inputs, outputs, options=None: OrtEngine._call(engine, session, {}, {}, options)
    return engine, engine._session


OOM = "Failed to allocate memory for requested buffer of size 1234"


@pytest.mark.parametrize(
    ("message", "kind", "remedy"),
    [
        (OOM, GpuMemoryError, "smaller batch"),
        ("CUDA error cudaErrorMemoryAllocation:out of memory", GpuMemoryError, "or the CPU"),
        ("CUBLAS failure 3: the resource allocation failed ; expr=cublasCreate(&cublas_handle_);", GpuMemoryError, "or the CPU"),
        ("CUDA failure 700: an illegal memory access was encountered", GpuLostError, "restart the process"),
        ("Non-zero status code returned while running Gather node\nmore", EngineError, "inspect"),
    ],
)
def test_failures_say_what_to_do(adder: Path, message: str, kind: type[Exception], remedy: str) -> None:
    engine, _ = failing(adder, host_memory(HostDevice()), message, times=9)
    with pytest.raises(kind, match=remedy) as caught:
        engine.run({"a": rows(2, 3), "b": rows(2, 4)}, {"sum": rows(2, 0)})
    assert "engine adder failed" in str(caught.value)
    assert "more" not in str(caught.value)


def test_idle_memory_is_given_up_once_for_a_call_that_lacks_it(adder: Path) -> None:
    device = HostDevice()
    memory = host_memory(device)
    engine, session = failing(adder, memory, OOM, times=1)
    memory.empty((100,), "uint8")
    engine.run({"a": rows(2, 3), "b": rows(2, 4)}, {"sum": rows(2, 0)})
    assert (session.calls, device.used) == (2, 0)
    engine, session = failing(adder, memory, OOM, times=1)
    with pytest.raises(GpuMemoryError):
        engine.run({"a": rows(2, 3), "b": rows(2, 4)}, {"sum": rows(2, 0)})
    assert session.calls == 1


def test_cpu_engine_refuses_device_tensors(adder: Path) -> None:
    tensor = host_memory(HostDevice()).upload(rows(2, 1))
    with OrtEngine(adder, "adder") as engine, pytest.raises(EngineError, match="runs on the CPU; a lies on a GPU"):
        engine.run({"a": tensor, "b": rows(2, 1)}, {"sum": rows(2, 0)})


def test_provider_shares_the_stream_and_computes_true_fp32() -> None:
    options = provider_options(0x1234, graphs=True, tf32=False)
    assert options["user_compute_stream"] == "4660"
    assert (options["use_tf32"], options["enable_cuda_graph"]) == ("0", "1")
    other = provider_options(1, graphs=False, tf32=True)
    assert (other["use_tf32"], other["enable_cuda_graph"]) == ("1", "0")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_only_a_decoder_of_fp16_may_use_tf32(monkeypatch: pytest.MonkeyPatch, bundle_folder: Path, precision: str) -> None:
    """Its convolutions are fp16 and have tensor cores only so; everything else, and all of fp32, keeps true fp32."""
    manifest = json.loads((bundle_folder / "manifest.json").read_text()) | {"precision": precision}
    (bundle_folder / "manifest.json").write_text(json.dumps(manifest))
    asked: dict[str, bool] = {}
    monkeypatch.setattr(ort_cuda, "OrtCudaEngine", lambda path, name, memory, graphs, tf32, fold: asked.update({name: tf32}))
    backend = OrtCuda.__new__(OrtCuda)
    backend.memory = host_memory(HostDevice())
    for name in ("transition", "decoder"):
        backend.open_engine(bundle_folder / f"{name}.onnx", name)
    assert asked == {"transition": False, "decoder": precision == "fp16"}


def test_weights_of_a_quantised_bundle_are_folded(monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    """The provider multiplies no weight as it is stored."""
    section = {"floats": "fp16", "folded": []}
    asked: list[bool] = []
    monkeypatch.setattr(ort_cuda, "OrtCudaEngine", lambda path, name, memory, graphs, tf32, fold: asked.append(fold))
    backend = OrtCuda.__new__(OrtCuda)
    backend.memory = host_memory(HostDevice())
    for changes in ({"precision": "fp16"}, {"precision": "int8-w8a8", "quantization": section}):
        manifest = json.loads((bundle_folder / "manifest.json").read_text()) | changes
        (bundle_folder / "manifest.json").write_text(json.dumps(manifest))
        backend.open_engine(bundle_folder / "decoder.onnx", "decoder")
    assert asked == [False, True]


def test_verification_runs_on_device_tensors(
    device: HostDevice, bundle_root: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "open_backend", lambda name, threads, low_vram: HostCuda(device))
    report = verify_bundle(Bundle(bundle_root), checkpoint, PROMPTS[:1], backend="ort-cuda")
    assert report.backend == "ort-cuda"
    assert report.failures() == []
    assert {check.mode for check in report.checks} >= {"teacher-forced", "free-running"}


@pytest.fixture
def sampled(doubled: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DeviceSampledLoop, HostKernels]]:
    """The doubled pipeline with the loop that samples on the device."""
    kernels = HostKernels()
    monkeypatch.setattr(device_sampling, "guided_sample", SimpleNamespace(launch=kernels.sample))
    loop = DeviceSampledLoop(doubled.loop, doubled.memory, kernels)
    monkeypatch.setattr(doubled, "loop", loop)
    yield loop, kernels


@pytest.mark.parametrize("options", [Options(smooth=False), Options(smooth=False, top_p=0.9, top_k=19)], ids=repr)
def test_sampling_on_the_device_does_not_change_a_picture(
    cpu: Pipeline, doubled: Pipeline, sampled: tuple[DeviceSampledLoop, HostKernels], options: Options
) -> None:
    want, got = (pipe.generate_batch(PROMPTS, seeds=[1, 2], options=options) for pipe in (cpu, doubled))
    assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))
    assert [how.scale for how in sampled[1].launched] == list(range(cpu.spec.scales))


def test_recorded_noise_is_sampled_on_the_host(doubled: Pipeline, sampled: tuple[DeviceSampledLoop, HostKernels]) -> None:
    loop, kernels = sampled
    logits = np.random.default_rng(19).standard_normal((2, 4, doubled.spec.codebook_size), np.float32)
    noise = np.zeros((1, 4, doubled.spec.codebook_size), np.float32)
    recorded = RecordedNoise({"token_1": noise, "smooth_1": noise})
    tokens, h = loop.sample(1, doubled.memory.upload(logits), 1, Options(cfg=0, top_k=1), recorded)
    assert (tokens == logits[:1].argmax(-1)).all()
    assert (h.shape, kernels.launched) == ((1, doubled.spec.latent_channels, 2, 2), [])


@pytest.mark.parametrize("scale", [0, 2, 9])
def test_sampling_kernel_is_given_what_the_host_samples_with(
    cpu: Pipeline, sampled: tuple[DeviceSampledLoop, HostKernels], scale: int
) -> None:
    rows, tokens = (2, cpu.spec.context_tokens) if scale == 0 else (4, cpu.spec.patch_nums[scale] ** 2)
    logits = np.random.default_rng(7).standard_normal((rows, tokens, cpu.spec.codebook_size), np.float32)
    arguments = (scale, logits, 2, Options(smooth=True), PhiloxNoise([3, 4]))
    (want_tokens, want), (got_tokens, got) = cpu.loop.sample(*arguments), sampled[0].sample(*arguments)
    np.testing.assert_array_equal(got_tokens, want_tokens)
    assert_close(got, want, "smooth codes")


def test_without_the_kernel_the_host_samples_and_a_warning_says_so(doubled: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise MissingPackageError("no compiler.", "Run: pip install 'hart-edge[cuda]'")

    monkeypatch.setattr(device_sampling, "KernelLibrary", absent)
    backend = OrtCuda.__new__(OrtCuda)
    backend._device, backend.memory = None, doubled.memory
    with pytest.warns(HartWarning, match=r"sampling runs on the CPU.*no compiler"):
        assert backend.make_loop(doubled.loop) is doubled.loop
