"""`guided_sample`: the truth against the runtime's sampling, the launches, the kernel against the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from devices import Gpu, assert_output, at, sanitized, values
from tolerances import assert_close

from hart_edge.plugins import guided_sample as op
from hart_edge.plugins.guided_sample import Sampling
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.sampling import choose, guide, keep_top_k, keep_top_p, smooth_codes

PLAIN = Sampling(t=1.7, top_k=300, top_p=0.0, ratio=6 / 13, scale=6, smooth=True)


@dataclass(frozen=True)
class Case:
    batch: int
    tokens: int
    size: int
    channels: int
    sampling: Sampling
    coarse: bool = False  # logits rounded to whole numbers: many ties
    spread: float = 3.0

    def tensors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """conditional, unconditional, seeds, codebook."""
        shape = (self.batch, self.tokens, self.size)
        pair = [values(shape, seed=s, scale=self.spread) for s in (0, 1)]
        if self.coarse:
            pair = [np.round(x) for x in pair]
        seeds = np.array([5, 2**64 - 3, 0x0123456789ABCDEF], np.uint64)[: self.batch]
        return pair[0], pair[1], seeds, values((self.size, self.channels), seed=2)


CASES = [
    Case(1, 1, 19, 3, replace(PLAIN, t=0.0, ratio=0.0, scale=0, top_k=7)),
    Case(3, 5, 111, 7, replace(PLAIN, top_k=10)),
    Case(2, 4, 4096, 32, replace(PLAIN, top_k=600)),
    Case(1, 9, 4096, 32, replace(PLAIN, t=4.1, ratio=12 / 13, scale=13)),
    Case(1, 4, 989, 33, replace(PLAIN, top_p=0.9)),
    Case(2, 3, 640, 32, replace(PLAIN, top_p=0.5, top_k=50, smooth=False)),
    Case(1, 3, 7001, 64, replace(PLAIN, top_k=7001)),
    Case(1, 3, 111, 5, replace(PLAIN, top_k=1)),
    Case(2, 4, 989, 32, replace(PLAIN, top_k=50), coarse=True),
    Case(2, 4, 300, 32, replace(PLAIN, t=0.0, top_k=200, top_p=0.8, smooth=False), coarse=True),
    Case(2, 4, 300, 32, replace(PLAIN, top_p=0.2), spread=0.0),  # all equal: the nucleus ends among ties, −0 beside +0
]


@pytest.mark.parametrize("case", CASES)
def test_truth_is_the_sampling_of_the_runtime(case: Case) -> None:
    conditional, unconditional, seeds, codebook = case.tensors()
    s, noise, shape = case.sampling, PhiloxNoise([int(seed) for seed in seeds]), (case.tokens, case.size)
    token, codes = op.guided_sample(conditional, unconditional, seeds, codebook, s)
    for image in range(case.batch):
        masked = guide(conditional[image], unconditional[image], s.t)
        keep_top_k(masked, s.top_k)
        keep_top_p(masked, s.top_p)
        index = choose(masked, noise.token(image, s.scale, shape))
        np.testing.assert_array_equal(token[image], index)
        expected = smooth_codes(masked, noise.smooth(image, s.scale, shape), s.ratio, codebook) if s.smooth else codebook[index]
        assert_close(codes[image], expected, "smooth codes")


def buffers(case: Case, **changes: object) -> dict:
    logits = at(4096, (case.batch, case.tokens, case.size))
    given = {
        "conditional": logits,
        "unconditional": logits,
        "seeds": at(0, (case.batch,), "uint64"),
        "codebook": at(0, (case.size, case.channels)),
        "token": at(0, (case.batch, case.tokens), "int64"),
        "codes": at(0, (case.batch, case.tokens, case.channels)),
        "s": case.sampling,
    }
    return given | changes


@pytest.mark.parametrize("case", CASES)
def test_a_block_per_token_of_every_image(case: Case) -> None:
    launch = op.launch(**buffers(case))
    assert launch.grid == (case.tokens, case.batch, 1)
    assert launch.shared == 6 * case.size
    assert launch.kernel in op.KERNELS
    assert (launch.arguments[1].value != 0) == (case.sampling.t != 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unconditional": None}, "guidance needs unconditional logits"),
        ({"codebook": at(0, (110, 7))}, r"codebook is float32 \[110, 7\]"),
        ({"token": at(0, (3, 5), "float32")}, "token is float32"),
        ({"s": replace(PLAIN, top_k=0)}, "top_k is 0"),
        ({"s": replace(PLAIN, top_p=1.5)}, "top_p is 1.5"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        op.launch(**buffers(CASES[1], **changes))


def test_a_codebook_beyond_shared_memory_is_refused() -> None:
    with pytest.raises(InputError, match="a codebook of 8192 needs"):
        op.launch(**buffers(Case(1, 1, 8192, 32, PLAIN)))


@pytest.mark.gpu
@pytest.mark.parametrize("case", sanitized(CASES, 1, 4, 5))
def test_kernel(gpu: Gpu, case: Case) -> None:
    conditional, unconditional, seeds, codebook = case.tensors()
    expected_token, expected_codes = op.guided_sample(conditional, unconditional, seeds, codebook, case.sampling)
    token, codes = gpu.empty(expected_token.shape, "int64"), gpu.empty(expected_codes.shape)
    gpu.run(op.launch(*map(gpu.put, (conditional, unconditional, seeds, codebook)), token, codes, case.sampling))
    np.testing.assert_array_equal(gpu.get(token), expected_token)
    assert_output(gpu.get(codes), expected_codes, "float32", "smooth codes")


@pytest.mark.gpu
def test_two_runs_give_the_same_bits(gpu: Gpu) -> None:
    case = CASES[2]
    tensors = [gpu.put(t) for t in case.tensors()]
    results = []
    for _ in range(2):
        token, codes = gpu.empty((case.batch, case.tokens), "int64"), gpu.empty((case.batch, case.tokens, case.channels))
        gpu.run(op.launch(*tensors, token, codes, case.sampling))
        results.append((gpu.get(token), gpu.get(codes)))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[7]])
def test_kernel_takes_given_noise_in_place_of_the_seeds(gpu: Gpu, case: Case) -> None:
    conditional, unconditional, seeds, codebook = case.tensors()
    logits, table, s = [gpu.put(conditional), gpu.put(unconditional)], gpu.put(codebook), case.sampling
    drawn, shape = PhiloxNoise([int(seed) for seed in seeds]), (case.tokens, case.size)
    noise = [gpu.put(np.stack([draw(j, s.scale, shape) for j in range(case.batch)])) for draw in (drawn.token, drawn.smooth)]
    results = []
    for keys, given in ((seeds, None), (np.zeros_like(seeds), (noise[0], noise[1]))):
        token, codes = gpu.empty((case.batch, case.tokens), "int64"), gpu.empty((case.batch, case.tokens, case.channels))
        gpu.run(op.launch(*logits, gpu.put(keys), table, token, codes, s, given))
        results.append((gpu.get(token), gpu.get(codes)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert_close(results[1][1], results[0][1], "smooth codes")
