"""Which entry of a full cache makes room: S3-FIFO (Yang et al., "FIFO queues are all you need", SOSP 2023).

New entries go through a small queue, a tenth of the room. What is asked for again there moves into the main queue, what
is not leaves at once, and is remembered by a hash alone: a key that comes back soon goes straight into the main queue.
So a scan of keys that nobody asks for twice passes through the small queue and costs the main one nothing. Hits write
one number an entry, which numpy does for all keys of a look-up together; LRU would move a list entry for each.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

SMALL_SHARE = 0.1
MOST_USES = 3  # counted up to here: so many turns of the main queue a popular entry outlives its last use
USES_TO_STAY = 1  # in the small queue, beyond the one that brought it


class S3Fifo:
    """Gives out the slots 0 … capacity - 1; for one thread at a time.

    Args:
        capacity: slots; at least 1.
        uses: how often each slot was used, (≥ capacity,) uint8, which the owner of the slots counts, up to MOST_USES.
    """

    def __init__(self, capacity: int, uses: NDArray[np.uint8]) -> None:
        self._uses = uses
        self._free = list(range(capacity - 1, -1, -1))
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._small_size = max(1, int(capacity * SMALL_SHARE))
        self._tags = [0] * capacity
        self._ghosts: dict[int, None] = {}  # hashes of what left, oldest first
        self._most_ghosts = capacity
        self.evicted = 0

    def place(self, tag: int) -> int:
        """A slot for a key whose hash is `tag`; whatever was in it has left."""
        slot = self._free.pop() if self._free else self._evict()
        if tag in self._ghosts:
            del self._ghosts[tag]
            self._main.append(slot)
        else:
            self._small.append(slot)
        self._tags[slot] = tag
        self._uses[slot] = 0
        return slot

    def by_standing(self) -> list[int]:
        """The slots in use, those least likely to leave first."""
        return [*reversed(self._main), *reversed(self._small)]

    def _evict(self) -> int:
        self.evicted += 1
        while True:
            if len(self._small) >= self._small_size or not self._main:
                slot = self._small.popleft()
                if self._uses[slot] < USES_TO_STAY:
                    self._remember(self._tags[slot])
                    return slot
                self._uses[slot] = 0
                self._main.append(slot)
            else:
                slot = self._main.popleft()
                if not self._uses[slot]:
                    return slot
                self._uses[slot] -= 1
                self._main.append(slot)

    def _remember(self, tag: int) -> None:
        self._ghosts[tag] = None
        if len(self._ghosts) > self._most_ghosts:
            del self._ghosts[next(iter(self._ghosts))]
