"""Captions: variety, a fixed vocabulary, and that `parse` reads what `caption` writes."""

from __future__ import annotations

import numpy as np
import pytest

from hart_edge.export.shapes.captions import caption, describe, parse, plain
from hart_edge.export.shapes.sampler import sample_scene
from hart_edge.export.shapes.scene import Group, Scene, Spec, spec_of
from hart_edge.export.shapes.vocabulary import words
from hart_edge.runtime.errors import InputError


@pytest.fixture(scope="module")
def captioned() -> list[tuple[Scene, str]]:
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng, held_out=bool(i % 2)) for i in range(2000)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def test_parse_reads_every_caption(captioned: list[tuple[Scene, str]]) -> None:
    for scene, text in captioned:
        claimed, drawn = parse(text), spec_of(scene)
        assert claimed.without_sizes() == drawn.without_sizes(), text
        for said, true in zip(claimed.groups, drawn.groups, strict=True):
            assert said.size in (None, true.size), text


def test_parse_reads_the_plain_caption(captioned: list[tuple[Scene, str]]) -> None:
    for scene, _ in captioned:
        assert parse(plain(scene)) == spec_of(scene).without_sizes()
        assert parse(describe(spec_of(scene))) == spec_of(scene)


def test_words_are_of_the_vocabulary(captioned: list[tuple[Scene, str]]) -> None:
    used = {word.rstrip(",") for _, text in captioned for word in text.split()}
    assert used <= words()
    assert len(words()) < 100


def test_captions_vary_and_name_sizes_and_grounds(captioned: list[tuple[Scene, str]]) -> None:
    texts = [text for _, text in captioned]
    assert len(set(texts)) > 1800
    assert all(text == text.lower() for text in texts)
    sized = sum(any(group.size for group in parse(text).groups) for text in texts) / len(texts)
    grounded = sum("background" in text or "backdrop" in text for text in texts) / len(texts)
    assert 0.4 < sized < 0.8
    assert 0.2 < grounded < 0.4


def test_a_seed_fixes_the_caption(captioned: list[tuple[Scene, str]]) -> None:
    scene = captioned[0][0]
    assert caption(scene, np.random.default_rng(1)) == caption(scene, np.random.default_rng(1))


TWO_RED, ONE_BLUE = Group(2, "red", "circle"), Group(1, "blue", "square")


@pytest.mark.parametrize(
    "text",
    [
        "two red circles above a blue square",
        "Two red discs over one blue box.",
        "above a blue square, two red circles",
        "a blue square with two red circles above it",
        "a picture of 2 circles coloured red on top of a single blue square on a striped background",
    ],
)
def test_ways_to_say_the_same(text: str) -> None:
    assert parse(text) == Spec((TWO_RED, ONE_BLUE), "above")


def test_a_missing_number_means_one() -> None:
    assert parse("large orange star") == Spec((Group(1, "orange", "star", "large"),))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a lighthouse at dusk", "lighthouse"),
        ("five red circles", "five red circles"),
        ("a brown square", "brown"),
        ("a red circle near a blue square", "near"),
        ("two red circle", "disagree"),
        ("red circles", "disagree"),
        ("", "''"),
    ],
)
def test_unreadable_text_is_named(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse(text)
