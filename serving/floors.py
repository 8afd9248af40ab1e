"""Version floors: what an announcement said of a key, kept for longer than any read that began before it."""

from collections import OrderedDict
from dataclasses import dataclass

FLOOR_SECONDS = 60.0  # > the longest read of the store: its request time-out, 10 s unless set higher, and retries
MOST_FLOORS = 200_000  # 60 s of 3,000 announcements a second; about 60 MB


@dataclass(frozen=True, slots=True)
class Floor:
    """The oldest row of a key that may still be cached.

    Attributes:
        event_time: microseconds since 1970; older rows are history.
        embedding_id: of the row at `event_time` itself, where there is one; None: no row at that time stands.
        until: seconds of the cache's clock.
    """

    event_time: int
    embedding_id: int | None
    until: float

    def admits(self, event_time: int, embedding_id: int) -> bool:
        return event_time > self.event_time or (event_time == self.event_time and embedding_id == self.embedding_id)


class Floors:
    """The floors of one view; for one thread at a time. Memory is bounded: see `complete_since`."""

    def __init__(self, *, seconds: float = FLOOR_SECONDS, most: int = MOST_FLOORS) -> None:
        self._seconds = seconds
        self._most = most
        self._floors: OrderedDict[str, Floor] = OrderedDict()  # the oldest announcement first
        self.complete_since = float("-inf")
        """A floor from before this may have been given up for want of room: no read from before it can be trusted."""

    def __len__(self) -> int:
        return len(self._floors)

    def get(self, key: str) -> Floor | None:
        return self._floors.get(key)

    def raise_to(self, key: str, event_time: int, embedding_id: int | None, now: float) -> None:
        """Notes an announcement; one that is older than what is known changes nothing but the time it is kept."""
        before = self._floors.pop(key, None)
        if before is not None and before.event_time > event_time:
            event_time, embedding_id = before.event_time, before.embedding_id
        self._floors[key] = Floor(event_time, embedding_id, now + self._seconds)
        while self._floors:
            oldest = next(iter(self._floors.values()))
            if oldest.until > now and len(self._floors) <= self._most:
                break
            if oldest.until > now:
                self.complete_since = now
            self._floors.popitem(last=False)
