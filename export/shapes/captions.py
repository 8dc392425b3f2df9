"""Scenes in words, and words read back as claims.

    caption  = [opening] body [ground]
    body     = group | group joint group | relation group "," group | group "with" group relation pronoun
    group    = [number] [size] colour shape | [number] [size] shape "coloured" colour

Lower case throughout. Knows nothing of pixels.
"""

from __future__ import annotations

import re

import numpy as np

from hart_edge.export.shapes.scene import MAX_ITEMS, RELATIONS, Group, Scene, Spec, spec_of
from hart_edge.export.shapes.vocabulary import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    COLOURED,
    GROUND_FRAMES,
    NUMBER_WORDS,
    OPENINGS,
    PRONOUNS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    meanings,
)
from hart_edge.runtime.errors import InputError

SIZED, GROUNDED = 0.5, 0.3  # shares of captions that name a group's size, the ground


def _any(phrases: object) -> str:
    """A pattern for one of `phrases`, the longest first."""
    return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True) if phrase)  # type: ignore[call-overload]


_NUMBERS, _SIZES, _COLOURS = meanings(NUMBER_WORDS), meanings(SIZE_WORDS), meanings(COLOUR_WORDS)
_JOINTS, _GROUNDS = meanings(RELATION_WORDS), meanings(BACKGROUND_WORDS)
_NOUNS = {word: (shape, plural) for shape, pairs in SHAPE_WORDS.items() for pair in pairs for plural, word in enumerate(pair)}
_RELATIONS = [phrase for phrase, meaning in _JOINTS.items() if meaning is not None]
_OPENING = re.compile(rf"^(?:{_any(OPENINGS)}) ")
_GROUND = re.compile(" (?:" + "|".join(f"{before} (?:{_any(_GROUNDS)}) {after}" for before, after in GROUND_FRAMES) + ")$")
_GROUP = re.compile(
    rf"^(?:(?P<number>{_any(_NUMBERS)}) )?(?:(?P<size>{_any(_SIZES)}) )?"
    rf"(?:(?P<colour>{_any(_COLOURS)}) (?P<noun>{_any(_NOUNS)})"
    rf"|(?P<noun2>{_any(_NOUNS)}) (?:{_any(COLOURED)}) (?P<colour2>{_any(_COLOURS)}))$"
)
_FRONTED = re.compile(rf"^(?P<relation>{_any(_RELATIONS)}) (?P<second>[^,]+), ?(?P<first>[^,]+)$")
_WITH = re.compile(rf"^(?P<second>.+?) with (?P<first>.+?) (?P<relation>{_any(_RELATIONS)}) (?:{_any(PRONOUNS)})$")
_JOINED = re.compile(rf"^(?P<first>.+?) (?P<relation>{_any(_JOINTS)}) (?P<second>.+)$")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many captions of `scene`; `parse` reads it as `spec_of(scene)`, sizes where it names them."""
    spec = spec_of(scene)
    groups = [_group_words(group, rng) for group in spec.groups]
    body = groups[0] if len(groups) == 1 else _join(groups, spec, rng)
    opening = _opening(body, rng)
    ground = ""
    if rng.random() < GROUNDED:
        before, after = GROUND_FRAMES[rng.integers(len(GROUND_FRAMES))]
        ground = f"{before} {_pick(BACKGROUND_WORDS[scene.background.kind], rng)} {after}"
    return " ".join(part for part in (opening, body, ground) if part)


def plain(scene: Scene) -> str:
    """The canonical caption: counts, colours, shapes and the relation, such as "two red circles above a blue square"."""
    return describe(spec_of(scene).without_sizes())


def describe(spec: Spec) -> str:
    """The canonical words of `spec`."""
    joint = f" {RELATION_WORDS[spec.relation][0]} "
    return joint.join(_phrase(group, NUMBER_WORDS[group.count][0], group.size or "", group.colour) for group in spec.groups)


def parse(text: str) -> Spec:
    """What `text` claims.

    Raises:
        InputError: a text outside the captions' grammar.
    """
    body = re.sub(r"\s+", " ", text.lower()).strip(" .")
    body = _GROUND.sub("", _OPENING.sub("", body))
    if _GROUP.match(body):
        return Spec((_read_group(body, text),))
    for pattern in (_FRONTED, _WITH, _JOINED):
        match = pattern.match(body)
        if match:
            groups = tuple(_read_group(match[name], text) for name in ("first", "second"))
            return Spec(groups, _JOINTS[match["relation"]])  # type: ignore[arg-type]
    _read_group(body, text)
    raise AssertionError  # unreachable: a readable group was returned above


def _read_group(phrase: str, text: str) -> Group:
    """The group that `phrase` names; `text` is the whole caption, for the message."""
    match = _GROUP.match(phrase)
    if match is None:
        raise InputError(
            f"Cannot read {phrase!r} in the caption {text!r}.",
            f"Write 1 to {MAX_ITEMS} things as in 'two red circles above a blue square'; colours: {', '.join(COLOUR_WORDS)}; "
            f"shapes: {', '.join(SHAPE_WORDS)}; relations: {', '.join(RELATIONS)}, or 'and'.",
        )
    shape, plural = _NOUNS[match["noun"] or match["noun2"]]
    count = _NUMBERS.get(match["number"], 0 if plural else 1)
    if (count == 1) == bool(plural) or count == 0:
        raise InputError(f"Number and noun of {phrase!r} disagree in the caption {text!r}.", "Write 'one circle' or 'two circles'.")
    colour = _COLOURS[match["colour"] or match["colour2"]]
    return Group(count, colour, shape, _SIZES.get(match["size"]))  # type: ignore[arg-type]


def _pick(options: tuple, rng: np.random.Generator):
    """The first option half of the time, else any."""
    return options[0] if rng.random() < 0.5 else options[rng.integers(len(options))]


def _group_words(group: Group, rng: np.random.Generator) -> str:
    size = _pick(SIZE_WORDS[group.size], rng) if group.size and rng.random() < SIZED else ""
    return _phrase(group, _pick(NUMBER_WORDS[group.count], rng), size, _pick(COLOUR_WORDS[group.colour], rng), rng)


def _phrase(group: Group, number: str, size: str, colour: str, rng: np.random.Generator | None = None) -> str:
    """A group's words; with `rng` the noun's spelling and the place of the colour vary."""
    pairs = SHAPE_WORDS[group.shape]
    noun = (_pick(pairs, rng) if rng else pairs[0])[group.count > 1]
    behind = rng is not None and rng.random() < 0.1
    tail = f"{noun} {COLOURED[int(rng.integers(2))]} {colour}" if behind and rng else f"{colour} {noun}"
    rest = f"{size} {tail}".strip()
    if number in ("a", "an"):
        number = "an" if rest[0] in "aeiou" else "a"
    return f"{number} {rest}"


def _join(groups: list[str], spec: Spec, rng: np.random.Generator) -> str:
    """Two groups' words and their relation, in one of three orders."""
    first, second = groups
    relation, order = _pick(RELATION_WORDS[spec.relation], rng), rng.random()
    if spec.relation is None or order < 0.7:
        return f"{first} {relation} {second}"
    if order < 0.85:
        return f"{relation} {second}, {first}"
    return f"{second} with {first} {relation} {PRONOUNS[spec.groups[1].count > 1]}"


def _opening(body: str, rng: np.random.Generator) -> str:
    """Words before the body: none half of the time, and none before a relation."""
    opening = _pick(OPENINGS, rng)
    if any(body.startswith(f"{relation} ") for relation in _RELATIONS):
        return ""
    if opening.startswith("there"):
        number = next(phrase for phrase in sorted(_NUMBERS, key=len, reverse=True) if body.startswith(f"{phrase} "))
        return "there is" if _NUMBERS[number] == 1 else "there are"
    return opening
