"""TensorRT engines behind `Engine`: binding, ranges, in-place caches, captured graphs, refusals, over a strict double."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from calls import cache_of, inputs_of, outputs_of
from made_engines import edit
from tensorrt_double import HostGpu, Opener, TrtDouble

from hart_edge.runtime import Bundle, EngineError, GpuError, GpuMemoryError, HartWarning, Pipeline, StageTimes
from hart_edge.runtime import pipeline as pipeline_module
from hart_edge.runtime.engine import Engine, Tensor
from hart_edge.runtime.ort import OrtCpu
from hart_edge.runtime.spec import cache_names
from hart_edge.runtime.trt import backend as backend_module
from hart_edge.runtime.trt import session
from hart_edge.runtime.trt.backend import TrtBackend

ENGINES = ["text_encoder", "context", "transition", "residual_condition", "residual_step", "decoder"]


def truth(bundle: Bundle, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with OrtCpu(1).open_engine(bundle.engine(name), name) as engine:
        outputs = outputs_of(name, bundle.spec, engine)
        engine.run(inputs, outputs)
    return outputs


def on_device(backend: TrtBackend, bundle: Bundle, engine: Engine, batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One call of the context engine whose tensors stay where they are."""
    inputs, outputs = inputs_of("context", bundle.spec, engine, batch, batch), outputs_of("context", bundle.spec, engine, batch)
    upload = backend.memory.upload
    return {name: upload(array) for name, array in inputs.items()}, {name: upload(array) for name, array in outputs.items()}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("where", ["arrays", "device"])
def test_every_engine_computes_what_its_graph_does(name: str, where: str, bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine(name), name) as engine:
        inputs, outputs = inputs_of(name, bundle.spec, engine, seed=1), outputs_of(name, bundle.spec, engine)
        upload = backend.memory.upload if where == "device" else lambda array: array
        given, made = ({key: upload(array) for key, array in group.items()} for group in (inputs, outputs))
        engine.run(given, made)
        for key, want in truth(bundle, name, inputs).items():
            np.testing.assert_array_equal(backend.memory.download(made[key]), want)
    assert trt.names().count("IExecutionContext.execute_async_v3") == 1
    assert ("IExecutionContext.execute_async_v3", (0x57,)) in trt.calls  # on the backend's stream


def test_caches_are_written_in_place(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    """Bound to the input's memory whether the output is asked for or not; other memory is refused."""
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("transformer"), "transformer") as engine:
        inputs = {key: backend.memory.upload(array) for key, array in inputs_of("transformer", bundle.spec, engine, seed=2).items()}
        outputs = {key: backend.memory.upload(array) for key, array in outputs_of("transformer", bundle.spec, engine).items()}
        k_in, _, k_out, _ = cache_names(0)
        engine.run(inputs, outputs | {k_out: inputs[k_in]})
        places = {name: address for call, (name, address) in ((c, a) for c, a in trt.calls if c == "IExecutionContext.set_tensor_address")}
        for layer in range(bundle.spec.depth):
            k_in, v_in, k_out, v_out = cache_names(layer)
            assert places[k_out] == places[k_in] == inputs[k_in].address and places[v_out] == places[v_in]
        with pytest.raises(EngineError, match=f"writes {k_out} into the memory of {k_in}; give the same tensor for both"):
            engine.run(inputs, outputs | {k_out: backend.memory.upload(cache_of(bundle.spec, np.dtype("float16"), 1)[0][0])})


def test_outputs_that_are_not_asked_for_have_memory_too(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("decoder"), "decoder") as engine:
        inputs, outputs = inputs_of("decoder", bundle.spec, engine, seed=3), outputs_of("decoder", bundle.spec, engine)
        engine.run(inputs, {"image": outputs["image"]})
        np.testing.assert_array_equal(outputs["image"], truth(bundle, "decoder", inputs)["image"])
    assert "IExecutionContext.get_tensor_shape" in trt.names()


def test_inputs_that_shapes_depend_on_stay_on_the_host(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    trt.host = ("scale", "phi")
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("transition"), "transition") as engine:
        inputs, outputs = inputs_of("transition", bundle.spec, engine, seed=4), outputs_of("transition", bundle.spec, engine)
        given = inputs | {"phi": backend.memory.upload(inputs["phi"])}
        engine.run(given, outputs)
        np.testing.assert_array_equal(outputs["x"], truth(bundle, "transition", inputs)["x"])
    assert ("IExecutionContext.set_tensor_address", ("scale", inputs["scale"].ctypes.data)) in trt.calls


def test_a_shape_that_was_not_built_for_names_the_command(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("context"), "context") as engine:
        inputs, outputs = (
            make("context", bundle.spec, engine, **more)
            for make, more in ((inputs_of, {"seed": 1, "batch": 3}), (outputs_of, {"batch": 3}))
        )
        with pytest.raises(
            EngineError,
            match=r"context was given shape \[3, .*built for \[1, .*\] to \[2, .*hart-edge build .*tensorrt-rtx --overwrite --batch N",
        ):
            engine.run(inputs, outputs)
    assert "IExecutionContext.set_input_shape" not in trt.names()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("set_input_shape", r"refuses shape \[2, .*\] of context for engine context: set_input_shape was refused"),
        ("set_tensor_address", "refuses the address of context for engine context: set_tensor_address was refused"),
        ("execute_async_v3", "does not run engine context: execute_async_v3 was refused"),
    ],
)
def test_a_refused_call_says_what_tensorrt_said(refused: str, message: str, bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("context"), "context") as engine:
        trt.refused.add(refused)
        with pytest.raises(EngineError, match=message):
            engine.run(inputs_of("context", bundle.spec, engine, seed=1), outputs_of("context", bundle.spec, engine))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("deserialize_cuda_engine", "does not load engine context: deserialize_cuda_engine was refused.*another backend"),
        ("create_execution_context", "makes no context for engine context: create_execution_context was refused.*out of memory"),
    ],
)
def test_a_refused_engine_says_what_tensorrt_said(refused: str, message: str, bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    trt.refused.add(refused)
    with pytest.raises(EngineError, match=message):
        backend.open_engine(bundle.engine("context"), "context")


def test_scratch_memory_is_one_block_as_large_as_the_largest_needs(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    engines = {name: backend.open_engine(bundle.engine(name), name) for name in ("context", "transformer", "decoder")}
    for name in ("context", "decoder"):
        engines[name].run(inputs_of(name, bundle.spec, engines[name], seed=1), outputs_of(name, bundle.spec, engines[name]))
    blocks = {arguments for name, arguments in trt.calls if name == "IExecutionContext.set_device_memory"}
    largest = max(len(engine.inputs) + len(engine.outputs) for engine in engines.values())
    assert {size for _, size in blocks} == {1000 + largest} and len(blocks) == 1
    for engine in engines.values():
        engine.close()


def test_rtx_captures_itself_and_specialises_lazily(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("context"), "context"):
        settings = dict(call for call in trt.calls if call[0].startswith("IRuntimeConfig"))
    assert settings["IRuntimeConfig.cuda_graph_strategy"] == ("CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",)
    assert settings["IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy"] == ("DynamicShapesKernelSpecializationStrategy.LAZY",)
    assert settings["IRuntimeConfig.set_execution_context_allocation_strategy"] == ("ExecutionContextAllocationStrategy.USER_MANAGED",)
    assert "IRuntimeConfig.set_runtime_cache" in settings


def test_classic_calls_are_captured_when_they_come_again(bundle: Bundle, classic: TrtDouble, open_trt: Opener) -> None:
    """Per shape and address: enqueued, enqueued and captured, then launched; results are the same each time."""
    backend = open_trt(classic, "tensorrt")
    gpu = classic.gpu
    assert isinstance(gpu, HostGpu)
    with backend.open_engine(bundle.engine("context"), "context") as engine:
        calls = {batch: on_device(backend, bundle, engine, batch) for batch in (1, 2)}
        for batch in (2, 1, 2, 1, 2, 1, 2):
            inputs, outputs = calls[batch]
            engine.run(inputs, outputs)
            if batch == 2:
                want = truth(bundle, "context", {name: backend.memory.download(tensor) for name, tensor in inputs.items()})
                np.testing.assert_array_equal(backend.memory.download(outputs["x"]), want["x"])
                backend.memory.write(outputs["x"], np.zeros_like(want["x"]))
    assert (gpu.captured, gpu.launched) == (2, 3)
    assert classic.names().count("IExecutionContext.execute_async_v3") == 6  # twice per shape, and once more into each graph
    assert not [name for name in classic.names() if name.startswith("IRuntimeCache")]


def test_calls_whose_host_values_matter_are_not_captured(bundle: Bundle, classic: TrtDouble, open_trt: Opener) -> None:
    classic.host = ("scale", "phi")
    backend = open_trt(classic, "tensorrt")
    with backend.open_engine(bundle.engine("transition"), "transition") as engine:
        for seed in range(4):
            inputs, outputs = inputs_of("transition", bundle.spec, engine, seed), outputs_of("transition", bundle.spec, engine)
            engine.run(inputs, outputs)
            np.testing.assert_array_equal(outputs["x"], truth(bundle, "transition", inputs)["x"])
    assert classic.gpu.captured == 0


@pytest.mark.parametrize("error", [GpuError("not capturable."), EngineError("no.")])
def test_a_driver_that_captures_nothing_costs_only_time(error: Exception, bundle: Bundle, classic: TrtDouble, open_trt: Opener) -> None:
    gpu = HostGpu(80)
    gpu.refuse_capture = error
    backend = open_trt(classic, "tensorrt", gpu)
    with backend.open_engine(bundle.engine("context"), "context") as engine:
        inputs, outputs = on_device(backend, bundle, engine, 2)
        engine.run(inputs, outputs)
        with pytest.warns(HartWarning, match="not captured as CUDA graphs"):
            engine.run(inputs, outputs)
        want = truth(bundle, "context", {name: backend.memory.download(tensor) for name, tensor in inputs.items()})
        np.testing.assert_array_equal(backend.memory.download(outputs["x"]), want["x"])


def test_graphs_are_not_kept_without_end(bundle: Bundle, classic: TrtDouble, open_trt: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_GRAPHS", 1)
    backend = open_trt(classic, "tensorrt")
    with backend.open_engine(bundle.engine("context"), "context") as engine:
        for batch in (1, 2, 1, 2):
            engine.run(inputs_of("context", bundle.spec, engine, 1, batch), outputs_of("context", bundle.spec, engine, batch))
        assert len(engine._session._graphs._graphs) == 1 and classic.gpu.captured == 0


def test_a_full_gpu_gives_up_idle_memory_first(bundle: Bundle, trt: TrtDouble, open_trt: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("context"), "context") as engine:
        inputs, outputs = inputs_of("context", bundle.spec, engine, seed=1), outputs_of("context", bundle.spec, engine)
        engine.run(inputs, outputs)
        compute, failures = engine._compute, iter([True])

        def fail_once(*arguments: object) -> None:
            if next(failures, False):
                raise GpuMemoryError("full.")
            compute(*arguments)

        monkeypatch.setattr(engine, "_compute", fail_once)
        engine.run(inputs, outputs)
        monkeypatch.setattr(backend.memory, "trim", lambda: False)
        monkeypatch.setattr(engine, "_compute", lambda *arguments: (_ for _ in ()).throw(GpuMemoryError("full.")))
        with pytest.raises(GpuMemoryError, match="full"):
            engine.run(inputs, outputs)


def test_closed_engines_say_so_and_close_twice(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(trt)
    engine = backend.open_engine(bundle.engine("context"), "context")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="engine context is closed"):
        engine.run({}, {})
    backend.close()
    backend.close()
    assert trt.gpu.closed


@pytest.mark.parametrize("kind", ["tensorrt-rtx", "tensorrt"])
def test_a_picture_is_the_one_of_the_cpu(
    kind: str, bundle: Bundle, request: pytest.FixtureRequest, open_trt: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole pipeline, twice, so that classic TensorRT's graphs run too."""
    double = request.getfixturevalue("trt" if kind == "tensorrt-rtx" else "classic")
    with Pipeline.open(bundle, backend="cpu") as cpu:
        want = cpu.generate_batch(["a red star"], seeds=[1])
    backend = open_trt(double, kind)
    monkeypatch.setattr(pipeline_module, "open_backend", lambda name, threads, low_vram: backend)
    with pytest.warns(HartWarning, match="sampling runs on the CPU"), Pipeline.open(bundle, backend=kind) as pipe:
        assert pipe.backend == kind
        for _ in range(3 if kind == "tensorrt" else 1):
            got = pipe.generate_batch(["a red star"], seeds=[1], times=StageTimes())
            assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))
    assert double.gpu.closed and (double.gpu.launched > 0) == (kind == "tensorrt")


def test_python_plugins_are_registered_with_their_kernels_loaded(
    bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all engines, taken out again at the end; a fault in one becomes an error of the run."""
    edit(folder, "context", plugins={"AddRmsNorm": {"nodes": 1, "form": "python"}, "SwiGlu": {"nodes": 1, "form": "ahead"}})
    edit(folder, "decoder", plugins={"GroupNormSilu": {"nodes": 1, "form": "python"}})
    events: list[str] = []
    monkeypatch.setattr(backend_module.DeviceLauncher, "load", lambda self: events.append("load"))

    def register(trt: object, ops: Iterable[object], launch: object, faults: object) -> list[str]:
        events.append(f"{len(list(ops))} operators")
        return ["creator"]

    monkeypatch.setattr(backend_module, "register_plugins", register)
    monkeypatch.setattr(backend_module, "deregister_plugins", lambda trt, creators: events.append(f"without {creators}"))
    backend = open_trt(trt)
    with backend.open_engine(bundle.engine("context"), "context") as engine, backend.open_engine(bundle.engine("decoder"), "decoder"):
        assert events == ["load", "5 operators"]
        backend._faults.add("AddRmsNorm.enqueue", ValueError("no such kernel"))
        trt.refused.add("execute_async_v3")
        with pytest.raises(
            EngineError, match=r"a plugin failed while running engine context: AddRmsNorm\.enqueue: ValueError: no such kernel"
        ):
            engine.run(inputs_of("context", bundle.spec, engine, seed=1), outputs_of("context", bundle.spec, engine))
    backend.close()
    assert events[2:] == ["without ['creator']"]


def test_engines_without_python_plugins_register_none(bundle: Bundle, trt: TrtDouble, open_trt: Opener) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_trt(trt).open_engine(bundle.engine("context"), "context").close()
