"""`latent_sum`: the launch, and the kernel against the sum that the runtime computes, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from devices import Gpu, at, values

from hart_edge.plugins import latent_sum as op
from hart_edge.runtime.errors import InputError

SHAPES = [(1, 1, 1), (2, 81, 7), (1, 4096, 32)]


def test_truth_adds_in_the_order_of_the_runtime() -> None:
    f_hat, codes, residual = (values((1, 4, 3), seed=seed) for seed in range(3))
    np.testing.assert_array_equal(op.latent_sum(f_hat, codes, residual), f_hat + codes + residual)
    np.testing.assert_array_equal(op.latent_sum(f_hat, codes), f_hat + codes)


def test_wrong_tensors_are_named() -> None:
    x = at(0, (1, 300, 2))
    assert op.launch(x, x, x).grid == (3, 1, 1)
    with pytest.raises(InputError, match=r"residual is float32 \[2\]"):
        op.launch(x, x, x, at(0, (2,)))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_residual", [True, False])
def test_kernel(gpu: Gpu, shape: tuple[int, ...], with_residual: bool) -> None:
    f_hat, codes, residual = (values(shape, seed=seed) for seed in range(3))
    out = gpu.put(f_hat)
    gpu.run(op.launch(out, gpu.put(codes), out, gpu.put(residual) if with_residual else None))
    np.testing.assert_array_equal(gpu.get(out), op.latent_sum(f_hat, codes, residual if with_residual else None))
