"""The noise generator: known answers, distributions, and independence of size, chunk, batch and stream."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tolerances import SIGMAS, assert_close

from hart_edge.runtime import noise
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.noise import PhiloxNoise, Purpose, RecordedNoise, gumbel, normal, philox

SEED = 0x0123456789ABCDEF
ALL_ONES = 2**64 - 1
SHAPES = [(1, 1), (19, 111), (3, 989), (7, 1)]
DRAWS = [gumbel, normal]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    c, k = ([int(word, 16) for word in words.split()] for words in (counter, key))
    bits = philox(k[0] | k[1] << 32, first_block=c[0] | c[1] << 32, blocks=1, index=c[2], purpose=c[3])
    assert [f"{word:08x}" for word in bits[0]] == expected.split()


def test_consecutive_blocks_carry_into_the_second_counter_word() -> None:
    together = philox(SEED, 2**32 - 2, 5, 3, 1)
    alone = [philox(SEED, 2**32 - 2 + i, 1, 3, 1)[0] for i in range(5)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("element", [0, 1, 6, 19 * 111 - 1])
def test_gumbel_element_is_lane_of_block(element: int) -> None:
    bits = philox(SEED, element // 4, 1, index=5, purpose=Purpose.SMOOTH)[0, element % 4]
    expected = np.float32(-math.log(-math.log((int(bits) + 0.5) / 2**32)))
    assert_close(gumbel(SEED, Purpose.SMOOTH, 5, (19, 111)).reshape(-1)[element], expected, "float32")


@pytest.mark.parametrize("element", [0, 1, 2, 7, 19 * 111 - 1])
def test_normal_element_is_box_muller_of_a_lane_pair(element: int) -> None:
    pair = philox(SEED, element // 4, 1, 2, Purpose.DIFFUSION_STEP)[0].reshape(2, 2)[element % 4 // 2]
    first, second = ((int(bits) + 0.5) / 2**32 for bits in pair)
    turn = math.sin if element % 2 else math.cos
    expected = math.sqrt(-2 * math.log(first)) * turn(2 * math.pi * second)
    assert_close(normal(SEED, Purpose.DIFFUSION_STEP, 2, (19, 111)).reshape(-1)[element], expected, "float32")


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_and_dtype(draw, shape: tuple[int, int]) -> None:
    values = draw(SEED, Purpose.TOKEN, 0, shape)
    assert values.shape == shape
    assert values.dtype == np.float32


@pytest.mark.parametrize("draw", DRAWS)
def test_elements_do_not_depend_on_the_size(draw) -> None:
    large = draw(SEED, Purpose.TOKEN, 1, (111, 989)).reshape(-1)
    for shape in SHAPES:
        np.testing.assert_array_equal(draw(SEED, Purpose.TOKEN, 1, shape).reshape(-1), large[: shape[0] * shape[1]])


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("chunk", [1, 3, 19])
def test_elements_do_not_depend_on_the_chunk(draw, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(SEED, Purpose.TOKEN, 1, (19, 111))
    monkeypatch.setattr(noise, "_CHUNK", chunk)
    np.testing.assert_array_equal(draw(SEED, Purpose.TOKEN, 1, (19, 111)), expected)


def test_elements_beyond_one_real_chunk() -> None:
    boundary = 4 * noise._CHUNK
    values = gumbel(SEED, Purpose.TOKEN, 0, (1, boundary + 19))[0, boundary:]
    u = (philox(SEED, noise._CHUNK, 5, 0, Purpose.TOKEN).reshape(-1)[:19] + 0.5) / 2**32
    assert_close(values, -np.log(-np.log(u)), "float32")


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("bits", [0, 2**32 - 1])
def test_extreme_bits_give_finite_noise(draw, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "philox", lambda seed, first, blocks, *rest: np.full((blocks, 4), bits, np.uint32))
    assert np.isfinite(draw(SEED, Purpose.TOKEN, 0, (1, 19))).all()


def test_same_call_gives_the_same_bits() -> None:
    np.testing.assert_array_equal(gumbel(7, Purpose.TOKEN, 3, (19, 111)), gumbel(7, Purpose.TOKEN, 3, (19, 111)))


def test_seeds_scales_and_purposes_give_uncorrelated_streams() -> None:
    seeds = (0, 1, 2**32, ALL_ONES)
    streams = [normal(seed, purpose, index, (1, 989))[0] for seed in seeds for purpose in Purpose for index in (0, 1, 13)]
    for a, b in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < SIGMAS / math.sqrt(989)


def test_neighbouring_elements_are_uncorrelated() -> None:
    x = normal(SEED, Purpose.DIFFUSION_INIT, 0, (111, 989)).reshape(-1)
    for lag in (1, 2, 3, 4, 989):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < SIGMAS / math.sqrt(x.size)


@pytest.mark.parametrize(("draw", "mean", "std"), [(gumbel, np.euler_gamma, math.pi / math.sqrt(6)), (normal, 0.0, 1.0)])
def test_mean_and_deviation(draw, mean: float, std: float) -> None:
    x = draw(SEED, Purpose.TOKEN, 0, (111, 989)).astype(np.float64)
    assert abs(x.mean() - mean) < SIGMAS * std / math.sqrt(x.size)
    fourth = ((x - mean) ** 4).mean()
    assert abs(x.var() - std**2) < SIGMAS * math.sqrt((fourth - std**4) / x.size)


@pytest.mark.parametrize(
    ("draw", "cumulative"),
    [
        (gumbel, lambda x: np.exp(-np.exp(-x))),
        (normal, lambda x: 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
    ],
)
def test_distribution_by_kolmogorov_smirnov(draw, cumulative) -> None:
    x = np.sort(draw(SEED, Purpose.SMOOTH, 4, (19, 989)).reshape(-1).astype(np.float64))
    rank = np.arange(x.size + 1) / x.size
    theory = cumulative(x)
    distance = max(np.abs(theory - rank[:-1]).max(), np.abs(theory - rank[1:]).max())
    assert distance < math.sqrt(SIGMAS**2 / 2 / x.size)  # P < 2·exp(−2·n·distance²) = 2·exp(−25)


def test_every_image_of_a_batch_has_its_own_seed() -> None:
    shape, batch = (19, 111), PhiloxNoise([5, ALL_ONES, 9])
    for image, seed in enumerate((5, ALL_ONES, 9)):
        alone = PhiloxNoise([seed])
        np.testing.assert_array_equal(batch.token(image, 2, shape), alone.token(0, 2, shape))
        np.testing.assert_array_equal(batch.smooth(image, 2, shape), alone.smooth(0, 2, shape))
        np.testing.assert_array_equal(batch.diffusion_init(image, shape), alone.diffusion_init(0, shape))
        np.testing.assert_array_equal(batch.diffusion_step(image, 2, shape), alone.diffusion_step(0, 2, shape))
    assert not np.array_equal(batch.token(0, 2, shape), batch.token(1, 2, shape))


def test_the_four_kinds_are_the_streams_of_their_purposes() -> None:
    shape, source = (19, 7), PhiloxNoise([SEED])
    np.testing.assert_array_equal(source.token(0, 4, shape), gumbel(SEED, Purpose.TOKEN, 4, shape))
    np.testing.assert_array_equal(source.smooth(0, 4, shape), gumbel(SEED, Purpose.SMOOTH, 4, shape))
    np.testing.assert_array_equal(source.diffusion_init(0, shape), normal(SEED, Purpose.DIFFUSION_INIT, 0, shape))
    np.testing.assert_array_equal(source.diffusion_step(0, 4, shape), normal(SEED, Purpose.DIFFUSION_STEP, 4, shape))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_outside_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=str(seed)):
        PhiloxNoise([0, seed])


def test_recorded_noise_splits_batches_into_images(recording) -> None:
    arrays = recording.noise.arrays
    source = RecordedNoise(arrays)
    cells, channels = arrays["diffusion_init"].shape[0] // recording.batch, arrays["diffusion_init"].shape[1]
    for image in range(recording.batch):
        rows = slice(image * cells, (image + 1) * cells)
        np.testing.assert_array_equal(source.token(image, 2, (9, 640)), arrays["token_2"][image])
        np.testing.assert_array_equal(source.diffusion_init(image, (cells, channels)), arrays["diffusion_init"][rows])
        np.testing.assert_array_equal(source.diffusion_step(image, 3, (cells, channels)), arrays["diffusion_step_3"][rows])
