"""The inputs of one encoder that are ready and wait for a pass."""

import asyncio
import math
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.encoder import EncodeError, Encoder

Vector = NDArray[np.float32]

# For which an input waits while the cores are busy: one that passes share with decoding decodes a batch in that time
BUSY_SECONDS = 0.25
# Of texts that are better chosen from than of one: taken as they come, a pass is padded to twice its tokens
SORTED_PASSES = 4


class TooLate(Exception):
    """A call's deadline cannot be met any more, so what is left of it is not computed."""


@dataclass(eq=False, slots=True)
class Group:
    """Inputs that were put into a line together: one future for all, since one for each is what a text costs the loop.

    Attributes:
        done: once the outcomes of all are known.
        outcomes: of each, in the order in which they were given; None until it is known.
        left: how many of them are not known.
    """

    done: asyncio.Future[None]
    outcomes: list[Vector | EncodeError | None]
    left: int


@dataclass(eq=False, slots=True)
class Waiting:
    """An input that is ready."""

    network_input: Any
    arrived: float  # seconds of the event loop's clock
    deadline: float
    length: int  # in tokens; 0 for pictures, which are all of one size
    group: Group
    place: int  # within it

    def settle(self, outcome: Vector | EncodeError) -> None:
        """Takes down what became of it."""
        group = self.group
        group.outcomes[self.place] = outcome
        group.left -= 1
        if not group.left and not group.done.done():
            group.done.set_result(None)

    def give_up(self) -> None:
        """Tells its group that it comes too late."""
        if not self.group.done.done():
            self.group.done.set_exception(TooLate())


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

    def discard_group(self, group: Group) -> None:
        """Forgets inputs whose caller is gone."""
        for waiting in [each for each in self._waiting if each.group is group]:
            del self._waiting[waiting]

    def due_at(self, *, idle: bool = True) -> float:
        """When a batch of it is to leave: at once where it is full, or where nothing else is on its way that could
        share the pass; else when its oldest is old enough. While the cores are busy, texts wait for more to be chosen
        from.

        Args:
            idle: whether the cores have nothing to do. Where they have, a pass that is larger is worth more than one
                that begins sooner.
        """
        if not self._waiting:
            return math.inf
        oldest = next(iter(self._waiting))
        enough = self.max_batch if idle or not oldest.length else SORTED_PASSES * self.max_batch
        if len(self._waiting) >= enough or not self.coming:
            return -math.inf
        latest = oldest.arrived + (self.max_age if idle else max(self.max_age, BUSY_SECONDS))
        return min(latest, oldest.deadline - 2 * self.fastest)  # what waits for others is still computed in time

    def take(self, now: float) -> list[Waiting]:
        """The inputs of the next pass; those that cannot be computed in time get `TooLate`.

        The oldest is always among them, so none waits for ever. Texts are as if all that wait had been put in order of
        length and cut into passes: so padding is small, in this pass and in what it leaves to the next ones.
        """
        for waiting in [w for w in self._waiting if w.deadline < now + self.fastest]:
            del self._waiting[waiting]
            self.late += 1
            waiting.give_up()
        if not self._waiting:
            return []
        oldest = next(iter(self._waiting))
        if len(self._waiting) <= self.max_batch or not oldest.length:
            batch = list(islice(self._waiting, self.max_batch))
        else:
            by_length = sorted(self._waiting, key=attrgetter("length"))
            longer = len(by_length) - 1 - by_length.index(oldest)
            # cut from the longest on, so that the pass that is left over is the shortest
            start = max(0, len(by_length) - self.max_batch * (longer // self.max_batch + 1))
            batch = by_length[start : start + self.max_batch]
        for waiting in batch:
            del self._waiting[waiting]
        return batch

    def measured(self, seconds: float, count: int) -> None:
        """Takes down what a pass took."""
        self.used += seconds
        self.fastest = min(self.fastest or seconds, seconds)
        each = seconds / count
        self.seconds_each = (self.seconds_each + each) / 2 if self.seconds_each else each
