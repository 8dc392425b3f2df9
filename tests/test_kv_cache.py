"""The cache: contents after reset, shared memory of its bindings, and its limits."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest

from hart_edge.runtime.kv_cache import KVCache, KVCaches
from hart_edge.runtime.memory import HOST, HostMemory, Memory, Tensor
from hart_edge.runtime.spec import ModelSpec, cache_names


def constants(spec: ModelSpec, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    k = np.arange(1, 1 + spec.depth * spec.heads * spec.head_dim, dtype=dtype).reshape(spec.depth, spec.heads, spec.head_dim)
    return k, -k


def new_cache(spec: ModelSpec, batch: int = 2, dtype: str = "float32") -> KVCache:
    return KVCache(spec, batch, np.dtype(dtype), *constants(spec, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shapes_dtype_and_size(tiny_spec: ModelSpec, dtype: str) -> None:
    cache = new_cache(tiny_spec, batch=3, dtype=dtype)
    inputs, outputs = cache.bindings(6)
    shapes = {array.shape for array in (*inputs.values(), *outputs.values())}
    assert shapes == {(6, 3, 7 + 9 + 25, 4)}
    assert {array.dtype for array in inputs.values()} == {np.dtype(dtype)}
    assert cache.nbytes == sum(array.nbytes for array in inputs.values())
    assert (cache.capacity, cache.length) == (41, 0)


def test_unconditional_context_is_filled_and_the_rest_is_zero(tiny_spec: ModelSpec) -> None:
    inputs, _ = new_cache(tiny_spec).bindings(4)
    for layer in range(tiny_spec.depth):
        for name, constant in zip(cache_names(layer)[:2], constants(tiny_spec), strict=True):
            expected = np.zeros_like(inputs[name])
            expected[2:, :, :7] = constant[layer][:, None]
            np.testing.assert_array_equal(inputs[name], expected)


def test_bindings_are_named_by_layer(tiny_spec: ModelSpec) -> None:
    inputs, outputs = new_cache(tiny_spec).bindings(2)
    assert list(inputs) == ["k_cache_0", "v_cache_0", "k_cache_1", "v_cache_1"]
    assert list(outputs) == ["k_next_0", "v_next_0", "k_next_1", "v_next_1"]


@pytest.mark.parametrize("rows", [2, 4])
def test_outputs_are_the_memory_of_the_inputs(tiny_spec: ModelSpec, rows: int) -> None:
    cache = new_cache(tiny_spec)
    inputs, outputs = cache.bindings(rows)
    addresses = [array.ctypes.data for array in inputs.values()]
    assert addresses == [array.ctypes.data for array in outputs.values()]
    assert len(set(addresses)) == 2 * tiny_spec.depth
    assert all(array.flags.c_contiguous for array in inputs.values())
    outputs["v_next_1"][0, 0, 0, 0] = 111
    assert cache.bindings(4)[0]["v_cache_1"][0, 0, 0, 0] == 111


def test_advance_counts_up_to_the_capacity(tiny_spec: ModelSpec) -> None:
    cache = new_cache(tiny_spec)
    lengths = []
    for scale in range(tiny_spec.scales):
        cache.advance(tiny_spec.input_tokens(scale))
        lengths.append(cache.length)
    assert lengths == [7, 16, 41]
    with pytest.raises(ValueError, match="41 positions cannot take 1 after 41"):
        cache.advance(1)
    assert cache.length == 41


def test_reset_keeps_the_unconditional_context(tiny_spec: ModelSpec) -> None:
    cache, fresh = new_cache(tiny_spec), new_cache(tiny_spec)
    cache.advance(19)
    for array in cache.bindings(4)[0].values():
        array[:2] = array[:, :, 7:] = 989  # where engines write
    cache.reset()
    assert cache.length == 0
    for name, array in cache.bindings(4)[0].items():
        np.testing.assert_array_equal(array[2:, :, :7], fresh.bindings(4)[0][name][2:, :, :7])


class OtherMemory(HostMemory):
    """Stands for a GPU's: tensors may be kept in it, and what is written is counted."""

    def __init__(self) -> None:
        self.written = 0

    def may_keep(self, drop: Callable[[], None]) -> bool:
        return True

    def write(self, tensor: Tensor, array: Tensor) -> None:
        self.written += array.nbytes
        super().write(tensor, array)


def caches_in(memory: Memory, spec: ModelSpec) -> KVCaches:
    return KVCaches(spec, np.dtype("float32"), *constants(spec), memory)


def test_a_cache_that_was_given_back_serves_again_and_nothing_is_written(tiny_spec: ModelSpec) -> None:
    memory = OtherMemory()
    caches = caches_in(memory, tiny_spec)
    cache = caches.take(2)
    cache.advance(7)
    written = memory.written
    assert written == 2 * tiny_spec.depth * 2 * tiny_spec.heads * 7 * tiny_spec.head_dim * 4
    caches.give_back(cache)
    assert caches.take(2) is cache
    assert (cache.length, memory.written) == (0, written)
    assert caches.take(2) is not cache


def test_another_batch_gets_a_cache_of_its_own_and_frees_the_one_before(tiny_spec: ModelSpec) -> None:
    caches = caches_in(OtherMemory(), tiny_spec)
    cache = caches.take(2)
    caches.give_back(cache)
    freed = weakref.ref(cache)
    del cache
    assert caches.take(3).batch == 3
    assert freed() is None


def test_memory_of_the_host_is_given_back_between_pictures(tiny_spec: ModelSpec) -> None:
    caches = caches_in(HOST, tiny_spec)
    cache = caches.take(2)
    caches.give_back(cache)
    freed = weakref.ref(cache)
    del cache
    assert freed() is None
