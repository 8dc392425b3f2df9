"""NumPy sampling against the reference in torch, against the recorded runs, and against probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerances import RELATIVE_NORM, SIGMAS, assert_close, relative_error

from hart_edge.export.reference import sampling as reference
from hart_edge.runtime import sampling
from hart_edge.runtime.noise import Purpose, gumbel

SIZES = [(1, 19), (19, 111), (111, 989)]


def logits_of(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return (3 * np.random.default_rng(seed + rows * size).standard_normal((rows, size))).astype(np.float32)


def truncated(logits: np.ndarray, k: int, p: float = 0.0) -> np.ndarray:
    result = logits.copy()
    sampling.keep_top_k(result, k)
    sampling.keep_top_p(result, p)
    return result


def reference_truncated(logits: np.ndarray, k: int, p: float = 0.0) -> np.ndarray:
    return reference.truncate(torch.from_numpy(logits), k, p).numpy()


@pytest.mark.parametrize("scales", [2, 3, 10, 14])
def test_scale_ratio_follows_the_reference(scales: int) -> None:
    ratios = [sampling.scale_ratio(i, scales) for i in range(scales)]
    assert ratios == [reference.ratio(i, scales) for i in range(scales)]
    assert ratios[0] == 0
    assert ratios[-1] == ratios[-2]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("t", [0.0, 0.37, 1.0, 4.5])
def test_guidance_follows_the_reference(size: tuple[int, int], t: float) -> None:
    conditional, unconditional = logits_of(*size), logits_of(*size, seed=1)
    expected = reference.guide(torch.from_numpy(conditional), torch.from_numpy(unconditional), t)
    assert_close(sampling.guide(conditional, unconditional, t), expected, "float32")


@pytest.mark.parametrize("unconditional", [None, logits_of(19, 111, seed=1)])
def test_no_guidance_returns_a_copy_of_the_conditional_logits(unconditional: np.ndarray | None) -> None:
    conditional = logits_of(19, 111)
    guided = sampling.guide(conditional, unconditional, 0.0)
    np.testing.assert_array_equal(guided, conditional)
    assert not np.shares_memory(guided, conditional)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 7, 18])
def test_top_k_follows_the_reference(size: tuple[int, int], k: int) -> None:
    masked = truncated(logits_of(*size), k)
    np.testing.assert_array_equal(masked, reference_truncated(logits_of(*size), k))
    assert (np.isfinite(masked).sum(axis=-1) == k).all()


@pytest.mark.parametrize("extra", [0, 1, 989])
def test_top_k_of_the_codebook_size_or_more_keeps_everything(extra: int) -> None:
    logits = logits_of(19, 111)
    np.testing.assert_array_equal(truncated(logits, 111 + extra), logits)


def test_ties_at_the_threshold_are_kept() -> None:
    logits = np.array([[5, 1, 3, 3, 3, 0, -1]], np.float32)
    expected = np.array([[5, -np.inf, 3, 3, 3, -np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(truncated(logits, 2), expected)
    np.testing.assert_array_equal(reference_truncated(logits, 2), expected)


@pytest.mark.parametrize("k", [1, 3, 18, 50])
def test_top_k_of_coarse_logits_follows_the_reference(k: int) -> None:
    logits = np.round(logits_of(19, 111))  # many ties in every row
    np.testing.assert_array_equal(truncated(logits, k), reference_truncated(logits, k))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_after_top_k_follows_the_reference(size: tuple[int, int], p: float) -> None:
    masked = truncated(logits_of(*size), 15, p)
    np.testing.assert_array_equal(masked, reference_truncated(logits_of(*size), 15, p))
    assert np.isfinite(masked).any(axis=-1).all()


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = np.log(np.array([[0.5, 0.05, 0.25, 0.2]], np.float32))
    np.testing.assert_array_equal(np.isfinite(truncated(logits, 4, 0.9)), [[True, False, True, True]])
    np.testing.assert_array_equal(np.isfinite(truncated(logits, 4, 0.6)), [[True, False, True, False]])
    np.testing.assert_array_equal(np.isfinite(truncated(logits, 4, 0.1)), [[True, False, False, False]])


def test_likeliest_code_stays_however_small_p_is() -> None:
    """1 − p rounds to 1 and the cumulative sum may end just below it."""
    logits = logits_of(111, 989)
    kept = np.isfinite(truncated(logits, 989, 1e-9))
    np.testing.assert_array_equal(np.flatnonzero(kept) % 989, logits.argmax(axis=-1))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_top_p_off_keeps_everything(p: float) -> None:
    np.testing.assert_array_equal(truncated(logits_of(19, 111), 111, p), logits_of(19, 111))


@pytest.mark.parametrize("size", SIZES)
def test_choice_follows_the_reference(size: tuple[int, int]) -> None:
    masked, noise = truncated(logits_of(*size), 15), gumbel(1, Purpose.TOKEN, 0, size)
    index = sampling.choose(masked, noise)
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, reference.choose(torch.from_numpy(masked), torch.from_numpy(noise)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [0.0, 0.4, 12 / 13])
def test_smooth_codes_follow_the_reference(size: tuple[int, int], ratio: float) -> None:
    masked, noise, codebook = truncated(logits_of(*size), 15), gumbel(1, Purpose.SMOOTH, 0, size), logits_of(size[1], 7)
    expected = reference.smooth_codes(*map(torch.from_numpy, (masked, noise)), ratio, torch.from_numpy(codebook))
    codes = sampling.smooth_codes(masked, noise, ratio, codebook)
    assert codes.dtype == np.float32
    assert_close(codes, expected, "smooth codes")


def test_softmax_of_rows_with_minus_infinity() -> None:
    x = np.array([[0, -np.inf, math.log(3)], [-np.inf, 700, -np.inf], [-900, -900, -np.inf]], np.float32)
    assert_close(sampling.softmax(x), [[0.25, 0, 0.75], [0, 1, 0], [0.5, 0.5, 0]], "float32")


@pytest.mark.parametrize("size", SIZES)
def test_softmax_follows_torch(size: tuple[int, int]) -> None:
    x = 10 * logits_of(*size)
    assert_close(sampling.softmax(x), torch.from_numpy(x).double().softmax(-1), "float32")


def test_draws_follow_softmax() -> None:
    draws, size = 20011, 19
    masked = truncated(logits_of(1, size), 11)
    probability = sampling.softmax(masked)[0].astype(np.float64)
    index = sampling.choose(np.repeat(masked, draws, axis=0), gumbel(3, Purpose.TOKEN, 0, (draws, size)))
    counts = np.bincount(index, minlength=size)
    assert counts[probability == 0].sum() == 0
    deviation = np.sqrt(draws * probability * (1 - probability))
    assert (np.abs(counts - draws * probability) <= SIGMAS * deviation).all()


def test_recorded_guidance(recording, recorded_config) -> None:
    cfg, scales = recording.settings.cfg, len(recorded_config["transformer"]["patch_nums"])
    for i in range(1, scales):
        conditional, unconditional = np.split(recording.outputs[f"logits_{i}"], 2)
        guided = sampling.guide(conditional, unconditional, cfg * sampling.scale_ratio(i, scales))
        assert relative_error(guided, recording.outputs[f"cfg_logits_{i}"]) <= RELATIVE_NORM["recording"]


def test_recorded_tokens(recording, recorded_config) -> None:
    for i in range(len(recorded_config["transformer"]["patch_nums"])):
        for image in range(recording.batch):
            masked = truncated(recording.outputs[f"cfg_logits_{i}"][image], int(recording.outputs[f"topk_{i}"]))
            index = sampling.choose(masked, recording.noise.arrays[f"token_{i}"][image])
            np.testing.assert_array_equal(index, recording.outputs[f"idx_{i}"][image])
