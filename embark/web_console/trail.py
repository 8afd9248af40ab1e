"""What the parts told over the last quarter of an hour, in memory: the console keeps nothing else of them."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from embark.web_console.parts import Part, Series, Step

KEPT_SECONDS = 900.0
WINDOW_SECONDS = 60.0  # over which rates and quantiles of now are taken
EVERY_SECONDS = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """All parts at one time, `at` in seconds since 1970."""

    at: float
    steps: Mapping[str, Step]  # by the part's name


@dataclass(frozen=True, slots=True)
class Window:
    """The counts of a part over some moments, together."""

    counts: Mapping[Series, float] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def over(cls, moments: Sequence[Moment], part: str) -> Self:
        """Of one part; moments in which it was away count no time."""
        counts: dict[Series, float] = {}
        seconds = 0.0
        for moment in moments:
            step = moment.steps[part]
            seconds += step.seconds
            for series, count in step.counts.items():
                counts[series] = counts.get(series, 0.0) + count
        return cls(counts, seconds)

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of a name that have these labels."""
        wanted = set(labels.items())
        return sum(count for (each, has), count in self.counts.items() if each == name and wanted <= set(has))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The sum by a label's value, of the series that have these other labels."""
        wanted = set(labels.items())
        found: dict[str, float] = {}
        for (each, has), count in self.counts.items():
            if each == name and wanted <= set(has):
                value = dict(has).get(label, "")
                found[value] = found.get(value, 0.0) + count
        return found

    def rate(self, name: str, **labels: str) -> float | None:
        """`total` a second; None where no time has gone by."""
        return self.total(name, **labels) / self.seconds if self.seconds else None

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """A quantile of a histogram by its buckets, as Prometheus's `histogram_quantile`; None where it is empty."""
        buckets = sorted((float(le), count) for le, count in self.by(f"{name}_bucket", "le", **labels).items())
        if not buckets or buckets[-1][1] <= 0:
            return None
        wanted = share * buckets[-1][1]
        below, under = 0.0, 0.0  # upper end and count of the bucket before
        for upper, count in buckets:
            if count >= wanted:
                if upper == float("inf"):
                    return below  # all that is known: beyond the last end
                return upper if count == under else below + (upper - below) * (wanted - under) / (count - under)
            below, under = upper, count
        return below


class Trail:
    """Asks the parts every few seconds by a thread of its own, and keeps what they told. Safe to read from any thread.

    Args:
        parts: in the order in which they are shown.
        every: seconds between two times.
        clock: seconds since 1970.
    """

    def __init__(
        self, parts: Sequence[Part], *, every: float = EVERY_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        self.parts = tuple(parts)
        self._every = every
        self._clock = clock
        self._moments: deque[Moment] = deque(maxlen=max(2, round(KEPT_SECONDS / every)))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trail", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def look(self) -> Moment:
        """Asks all parts now, at once."""
        with ThreadPoolExecutor(max(1, len(self.parts))) as pool:
            steps = list(pool.map(Part.look, self.parts))
        moment = Moment(at=self._clock(), steps={part.name: step for part, step in zip(self.parts, steps, strict=True)})
        self._moments.append(moment)
        return moment

    @property
    def moments(self) -> list[Moment]:
        """All that are kept, oldest first."""
        return list(self._moments)

    def latest(self, seconds: float = WINDOW_SECONDS) -> list[Moment]:
        """Those of the last so many seconds."""
        moments = self.moments
        return [moment for moment in moments if moment.at >= moments[-1].at - seconds]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:
                logger.exception("the parts could not be asked; they are asked again")
            self._stop.wait(self._every)
