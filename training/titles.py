"""Titles from a small grammar, whose words have a known effect on clicks: the text half of a synthetic log's truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Word → logit. Some say much, most say nothing, as in real titles; tests hold on to none of the numbers.
ADJECTIVES: Mapping[str, float] = {
    "stunning": 0.5,
    "rare": 0.35,
    "secret": 0.45,
    "new": 0.2,
    "quiet": -0.15,
    "ordinary": -0.5,
    "official": -0.35,
    "old": -0.1,
    "annual": -0.4,
    "little": 0.0,
}
NOUNS: Mapping[str, Mapping[str, float]] = {
    "travel": {"island": 0.3, "mountain": 0.15, "train": -0.1, "temple": 0.0},
    "science": {"galaxy": 0.25, "rocket": 0.3, "cell": -0.2, "microscope": -0.15},
    "home": {"kitchen": 0.1, "garden": 0.15, "wall": -0.3, "lamp": -0.1},
    "animals": {"cat": 0.5, "bird": 0.05, "horse": 0.1, "insect": -0.25},
    "money": {"coin": 0.0, "market": -0.2, "budget": -0.45, "bargain": 0.4},
}
PLACES = (
    "in the city",
    "by the sea",
    "at night",
    "near you",
    "in winter",
    "on the moon",
    "of the year",
    "for beginners",
)
TEASERS: Mapping[str, float] = {
    "": 0.0,
    "you must see": 0.35,
    "explained": 0.05,
    "in ten pictures": 0.25,
    "a report": -0.35,
    "and what it costs": -0.1,
}

# What the words say together and neither says alone: no sum over words can have it.
SCARCE = frozenset({"rare", "secret"})
USUAL = frozenset({"wall", "lamp", "market", "budget", "train", "insect"})
SCARCE_AND_USUAL = 0.7  # a secret lamp makes curious
NEAR_AND_TEASED = -0.6  # "near you" with "you must see" reads as an advertisement


@dataclass(frozen=True, kw_only=True, slots=True)
class Title:
    """A title and what it does to the logit of a click."""

    text: str
    category: str
    effect: float


def draw_titles(random: np.random.Generator, count: int) -> list[Title]:
    """`count` titles, of categories, adjectives, nouns, places and teasers drawn evenly."""
    return [_title(random) for _ in range(count)]


def _title(random: np.random.Generator) -> Title:
    def one(of: Sequence[str]) -> str:
        return of[int(random.integers(len(of)))]

    category = one(list(NOUNS))
    adjective, noun, teaser, place = one(list(ADJECTIVES)), one(list(NOUNS[category])), one(list(TEASERS)), one(PLACES)
    effect = ADJECTIVES[adjective] + NOUNS[category][noun] + TEASERS[teaser]
    if adjective in SCARCE and noun in USUAL:
        effect += SCARCE_AND_USUAL
    if place == "near you" and teaser == "you must see":
        effect += NEAR_AND_TEASED
    words = [("An" if adjective[0] in "aeiou" else "A"), adjective, noun, place]
    return Title(text=" ".join(words) + (f": {teaser}" if teaser else ""), category=category, effect=effect)
