"""How many keys Retina embeds in a while: what bounds the time for which a batch holds up the next."""

from collections.abc import Iterator
from contextlib import contextmanager

from materializer.clock import Clock

UNKNOWN_KEYS = 16  # to begin with: 1 s of the slowest network on a CPU
MEMORY_SECONDS = 60.0  # what was not asked for since is not counted on
NEWEST = 0.5  # weight of the newest measurement
MANY = 1 << 16  # keys, where Retina takes no time that can be measured


class Pace:
    """Measures, view by view, and counts on the slowest of those that were asked for lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._views: dict[str, tuple[float, float]] = {}  # seconds a key, when

    @contextmanager
    def measure(self, view: str, keys: int) -> Iterator[None]:
        """Measures what Retina takes for `keys` keys; nothing where it raises."""
        began = self._clock.monotonic()
        yield
        now = self._clock.monotonic()
        newest = (now - began) / max(1, keys)
        before, _ = self._views.get(view, (newest, now))
        self._views[view] = (NEWEST * newest + (1 - NEWEST) * before, now)

    def keys_in(self, seconds: float) -> int:
        """Keys of any view that take about `seconds`, at least one."""
        now = self._clock.monotonic()
        known = [taken for taken, when in tuple(self._views.values()) if now - when <= MEMORY_SECONDS]
        if not known:
            return UNKNOWN_KEYS
        slowest = max(known)
        return max(1, int(seconds / slowest)) if slowest > 0 else MANY
