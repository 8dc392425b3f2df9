"""All kernels: named once, sources present. That they compile is tested in tests/cuda/test_build.py."""

from __future__ import annotations

from hart_edge.plugins import KERNELS, sources
from hart_edge.plugins.catalogue import OPERATORS


def test_kernels_are_named_once() -> None:
    assert len({(kernel.source, kernel.expression) for kernel in KERNELS}) == len(KERNELS)


def test_every_operator_is_a_slice_of_one_name() -> None:
    for operator in OPERATORS:
        name = operator.__name__.rsplit(".", 1)[-1]
        assert name == operator.OP
        assert {kernel.source for kernel in operator.KERNELS} == {f"{name}.cuh"}
        assert callable(getattr(operator, name, None))


def test_every_source_is_a_kernel_or_included() -> None:
    text = sources()
    included = {name for name in text if any(f'#include "{name}"' in other for other in text.values())}
    assert set(text) == {kernel.source for kernel in KERNELS} | included
