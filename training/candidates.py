"""The keys of candidates, and how few calls of EmbArk ask for them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

KEYS_A_CALL = 2000  # what EmbArk allows unless it is told otherwise


@dataclass(frozen=True, slots=True)
class Keys:
    """The distinct keys of B candidates, and which of them each has, (B,); −1 for one without a key."""

    distinct: list[str]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, values: Iterable[object]) -> Self:
        keys = [_key(value) for value in values]
        distinct = {key: i for i, key in enumerate(dict.fromkeys(key for key in keys if key is not None))}
        return cls(list(distinct), np.array([-1 if key is None else distinct[key] for key in keys], dtype=np.int64))


def together(keys: Mapping[str, Keys]) -> list[list[str]]:
    """The parts that one call asks for: all of them, or as many as a call may."""
    calls: list[list[str]] = []
    room = 0
    for name, each in keys.items():
        if not calls or len(each.distinct) > room:
            calls.append([])
            room = KEYS_A_CALL
        calls[-1].append(name)
        room -= len(each.distinct)
    return calls


def _key(value: object) -> str | None:
    """A look-up's key; None for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value)
