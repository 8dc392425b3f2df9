"""The words of the captions: every spelling that `parse` reads and `caption` writes, by meaning.

The first spelling of each meaning is the canonical one.
"""

from __future__ import annotations

SHAPE_WORDS: dict[str, tuple[tuple[str, str], ...]] = {  # (singular, plural)
    "circle": (("circle", "circles"), ("disc", "discs"), ("disk", "disks")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "cross": (("cross", "crosses"), ("plus", "pluses")),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
NUMBER_WORDS: dict[int, tuple[str, ...]] = {
    1: ("a", "one", "1", "an", "a single"),
    2: ("two", "2", "a pair of"),
    3: ("three", "3"),
    4: ("four", "4"),
}
RELATION_WORDS: dict[str | None, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "within", "in"),
    None: ("and", "together with", "as well as"),
}
OPENINGS = ("", "a picture of", "an image of", "a drawing of", "there is", "there are", "this picture shows", "we see")
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "flat"),
    "gradient": ("gradient", "shaded"),
    "striped": ("striped",),
    "dotted": ("dotted",),
    "mottled": ("mottled", "cloudy"),
}
GROUND_FRAMES = (("on a", "background"), ("against a", "background"), ("with a", "backdrop"))
COLOURED = ("coloured", "colored")
PRONOUNS = ("it", "them")
OTHERS = ("with",)


def words() -> frozenset[str]:
    """Every word a caption can hold; a comma is no word."""
    phrases = [*OPENINGS, *COLOURED, *PRONOUNS, *OTHERS]
    for table in (COLOUR_WORDS, SIZE_WORDS, NUMBER_WORDS, RELATION_WORDS, BACKGROUND_WORDS):
        phrases += [phrase for spellings in table.values() for phrase in spellings]
    phrases += [word for pairs in SHAPE_WORDS.values() for pair in pairs for word in pair]
    phrases += [part for frame in GROUND_FRAMES for part in frame]
    return frozenset(word for phrase in phrases for word in phrase.split())


def meanings(table: dict) -> dict[str, object]:
    """Spelling to meaning, of any table above but the shapes'."""
    return {phrase: meaning for meaning, phrases in table.items() for phrase in phrases}
