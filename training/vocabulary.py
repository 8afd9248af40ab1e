"""Categories as indices, the same in training and in ranking."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

UNSEEN = 0  # index of what training did not see, or hardly
LEAST_SEEN = 5  # impressions; rarer values share the index of the unseen, whose embedding is thereby learned


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The values of one categorical column: `values[i]` has the index i + 1."""

    values: tuple[str, ...]

    @classmethod
    def of(cls, column: Iterable[object], least: int = LEAST_SEEN) -> Self:
        """The values that come at least `least` times, in order."""
        counts = Counter(_text(value) for value in column if value is not None)
        return cls(tuple(sorted(value for value, count in counts.items() if count >= least)))

    def __len__(self) -> int:
        return 1 + len(self.values)

    def indices(self, column: Sequence[object]) -> NDArray[np.int64]:
        """(N,): 0 where a value is missing or not known."""
        known = {value: i for i, value in enumerate(self.values, 1)}
        return np.array([UNSEEN if v is None else known.get(_text(v), UNSEEN) for v in column], dtype=np.int64)


def indices(
    vocabularies: Mapping[str, Vocabulary], columns: Mapping[str, Sequence[object]], names: Sequence[str], count: int
) -> NDArray[np.int64]:
    """Indices of several columns, (count, len(names))."""
    found = [vocabularies[name].indices(columns[name]) for name in names]
    return np.stack(found, 1) if found else np.zeros((count, 0), dtype=np.int64)


def _text(value: object) -> str:
    """One form of a value, whatever reader it came from: numpy's 3 and Python's 3 are the same."""
    return str(value.item() if isinstance(value, np.generic) else value)
