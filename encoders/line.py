"""The inputs of one encoder that are ready and wait for a pass."""

import asyncio
import math
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.encoder import EncodeError, Encoder

Vector = NDArray[np.float32]

BUSY_SECONDS = 0.1  # that an input waits while all cores are busy: a pass begun sooner would be a small one, no earlier one


class TooLate(Exception):
    """A call's deadline cannot be met any more, so what is left of it is not computed."""


@dataclass(eq=False, slots=True)
class Waiting:
    """An input that is ready."""

    network_input: Any
    arrived: float  # seconds of the event loop's clock
    deadline: float
    length: int  # in tokens; 0 for pictures, which are all of one size
    done: asyncio.Future[Vector | EncodeError]


@dataclass(eq=False, slots=True)
class Line:
    """One encoder's inputs, whoever asked for them; the oldest first.

    Attributes:
        max_batch: inputs of a pass.
        max_age: seconds for which an input waits for others to share its pass.
        used: seconds that its passes took: what fairness between encoders counts.
        coming: inputs that are being downloaded or decoded.
        fastest: seconds of its fastest pass; 0 before the first.
        seconds_each: of an input within a pass, lately; 0 before the first.
        calls: that are under way.
    """

    encoder: Encoder
    max_batch: int
    max_age: float
    used: float = 0.0
    coming: int = 0
    fastest: float = 0.0
    seconds_each: float = 0.0
    calls: int = 0
    late: int = 0
    _waiting: dict[Waiting, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiting: Waiting) -> None:
        self._waiting[waiting] = None

    def discard(self, waiting: Waiting) -> None:
        """Forgets an input whose caller is gone."""
        self._waiting.pop(waiting, None)

    def due_at(self, *, idle: bool = True) -> float:
        """When a batch of it is to leave: at once where it is full, or where nothing else is on its way that could
        share the pass; else when its oldest is old enough.

        Args:
            idle: whether a core has nothing to do. Where none has, a pass would only keep others from being decoded.
        """
        if not self._waiting:
            return math.inf
        if len(self._waiting) >= self.max_batch or not self.coming:
            return -math.inf
        return next(iter(self._waiting)).arrived + (self.max_age if idle else max(self.max_age, BUSY_SECONDS))

    def take(self, now: float) -> list[Waiting]:
        """The inputs of the next pass; those that cannot be computed in time get `TooLate`.

        The oldest is always among them, together with those whose length is nearest to its own: so padding is small,
        and none waits for ever.
        """
        for waiting in [w for w in self._waiting if w.deadline < now + self.fastest]:
            self.discard(waiting)
            self.late += 1
            waiting.done.set_exception(TooLate())
        if not self._waiting:
            return []
        oldest = next(iter(self._waiting))
        if len(self._waiting) <= self.max_batch or not oldest.length:
            batch = list(islice(self._waiting, self.max_batch))
        else:
            by_length = sorted(self._waiting, key=lambda w: w.length)
            middle = by_length.index(oldest)
            start = min(max(0, middle - self.max_batch // 2), len(by_length) - self.max_batch)
            batch = by_length[start : start + self.max_batch]
        for waiting in batch:
            self.discard(waiting)
        return batch

    def measured(self, seconds: float, count: int) -> None:
        """Takes down what a pass took."""
        self.used += seconds
        self.fastest = min(self.fastest or seconds, seconds)
        each = seconds / count
        self.seconds_each = (self.seconds_each + each) / 2 if self.seconds_each else each
