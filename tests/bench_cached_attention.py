"""Compares two bodies of hart::CachedAttention on the CPU: valid prefix by Slice, and `nonpad_kv_seqlen`.

python tests/bench_cached_attention.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnx
import onnxruntime as ort

from hart_edge.plugins import CACHED_ATTENTION

ROWS, HEADS, WIDTH, CAPACITY = 2, 8, 64, 2539
STEPS = ((16, 310), (81, 370), (324, 615), (1024, 1515))  # new tokens, valid positions before them
NONPAD = """
<domain: "hart", opset_import: ["" : 24]>
CachedAttention <scale> (q, k, v, k_cache, v_cache, position, length) => (y, k_next, v_next)
{
    k_next = TensorScatter <axis = 2> (k_cache, k, position)
    v_next = TensorScatter <axis = 2> (v_cache, v, position)
    y = Attention <scale: float = @scale> (q, k_next, v_next, , , , length)
}
"""


def session(body: str) -> ort.InferenceSession:
    """A model of one call with the given function body."""
    names = ("q", "k", "v", "k_cache", "v_cache", "position", "length")
    node = onnx.helper.make_node("CachedAttention", names, ("y", "k_next", "v_next"), domain="hart", scale=0.25 / WIDTH**0.5)
    new, cache = ["R", HEADS, "L", WIDTH], ["R", HEADS, CAPACITY, WIDTH]
    shapes = dict(zip(names, (new, new, new, cache, cache, ["R"], ["R"]), strict=True)) | {"y": new, "k_next": cache, "v_next": cache}
    kinds = {name: onnx.TensorProto.INT64 if shape == ["R"] else onnx.TensorProto.FLOAT for name, shape in shapes.items()}
    values = {name: onnx.helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items()}
    graph = onnx.helper.make_graph([node], "call", [values[n] for n in names], [values[n] for n in ("y", "k_next", "v_next")])
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("hart", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[onnx.parser.parse_function(body)], ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def milliseconds(call: ort.InferenceSession, new: int, before: int, runs: int = 9) -> float:
    """Median time of one call with the cache bound in place."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((ROWS, HEADS, new, WIDTH), dtype=np.float32) for name in ("q", "k", "v", "y")}
    tensors |= {name: rng.standard_normal((ROWS, HEADS, CAPACITY, WIDTH), dtype=np.float32) for name in ("k_cache", "v_cache")}
    tensors |= {"position": np.full(ROWS, before), "length": np.full(ROWS, before + new)}
    tensors |= {"k_next": tensors["k_cache"], "v_next": tensors["v_cache"]}
    binding = call.io_binding()
    for node, bind in [(n, binding.bind_input) for n in call.get_inputs()] + [(n, binding.bind_output) for n in call.get_outputs()]:
        array = tensors[node.name]
        bind(node.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call.run_with_iobinding(binding)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    prefix, nonpad = session(CACHED_ATTENTION), session(NONPAD)
    print(f"{ROWS} rows, {HEADS} heads of {WIDTH}, buffer of {CAPACITY}, fp32; median ms")
    print(f"{'new':>6}{'valid':>7}{'prefix':>9}{'nonpad':>9}{'ratio':>7}")
    for new, before in STEPS:
        a, b = milliseconds(prefix, new, before), milliseconds(nonpad, new, before)
        print(f"{new:6d}{before + new:7d}{a:9.2f}{b:9.2f}{b / a:7.1f}")


if __name__ == "__main__":
    main()
