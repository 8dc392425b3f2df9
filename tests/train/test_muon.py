"""The stacked optimiser against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch

from hart_edge.export.train.muon import StackedMuon, by_shape, orthogonalise

SHAPES = [(24, 8), (8, 24), (24, 8), (16, 16), (24, 8), (1, 8)]


def matrices() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], count: int) -> list[torch.Tensor]:
    """What `count` steps with gradients of a fixed seed changed."""
    generator = torch.Generator().manual_seed(2)
    before = [p.detach().clone() for p in parameters]
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() - old for p, old in zip(parameters, before, strict=True)]


def test_the_same_steps_as_torch() -> None:
    ours, theirs = matrices(), matrices()
    library = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for a, b in zip(steps(StackedMuon(ours, 0.1, 0.05), ours, 4), steps(library, theirs, 4), strict=True):
        assert a.norm() > 0.1
        assert (a - b).norm() < 0.1 * b.norm()  # bfloat16, summed in another order


def test_state_is_torchs() -> None:
    first, second = matrices(), matrices()
    library = torch.optim.Muon(first, lr=0.1, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    steps(library, first, 3)
    ours = StackedMuon(second, 0.1, 0.05)
    ours.load_state_dict(copy.deepcopy(library.state_dict()))
    for p, q in zip(first, second, strict=True):
        assert torch.equal(library.state[p]["momentum_buffer"], ours.state[q]["momentum_buffer"])
        q.data.copy_(p.data)
    for a, b in zip(steps(ours, second, 1), steps(library, first, 1), strict=True):
        assert (a - b).norm() < 0.1 * b.norm()


def test_a_matrix_without_gradient_stays() -> None:
    still, moved = matrices()[0], matrices()[2]
    moved.grad = torch.ones_like(moved)
    before = still.detach().clone(), moved.detach().clone()
    StackedMuon([still, moved], 0.1, 0.05).step()
    assert torch.equal(still, before[0]) and not torch.equal(moved, before[1])


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24)])
def test_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    made = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(3)), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(made.float())
    assert made.shape == shape and values.min() > 0.5 and values.max() < 1.5


def test_shapes_together() -> None:
    assert [len(group) for group in by_shape(matrices())] == [3, 1, 1, 1]
