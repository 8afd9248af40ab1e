"""How often look-ups are answered HIT and OOV over time: expected values, bin by bin of popularity.

Look-ups of an item are a Poisson process, so an item that was not asked for yet stays so for a time t with probability
exp(-rate t). Its first look-up is OOV and asks for it; those that come before its embedding does are OOV, too. Retina
takes what is asked for, at no more than its capacity; what it cannot take waits. Nothing is drawn at random, so that a
billion items cost what a thousand do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embark.planning.workload import DAY, Popularity, Workload

STEPS = 700  # of equal length, beside as many whose length grows from a part of the delay on


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What happens over time; each of (T,).

    Attributes:
        time: seconds, the end of each step.
        oov: share of the look-ups in the step that were OOV.
        asked: embeddings asked for, a second.
        waiting: seconds from a miss to a hit.
        backlog: embeddings that were asked for and are not there.
        archived: share of the catalogue.
    """

    time: NDArray[np.float64]
    oov: NDArray[np.float64]
    asked: NDArray[np.float64]
    waiting: NDArray[np.float64]
    backlog: NDArray[np.float64]
    archived: NDArray[np.float64]

    def mean_oov(self, start: float = 0.0, end: float = np.inf) -> float:
        """Of all look-ups between two times; of the last step where none lies between."""
        return self._mean(self.oov, start, end)

    def mean_asked(self, start: float = 0.0, end: float = np.inf) -> float:
        return self._mean(self.asked, start, end)

    def _mean(self, of: NDArray[np.float64], start: float, end: float) -> float:
        length = np.diff(self.time, prepend=0.0)
        within = (self.time > start) & (self.time <= end)
        if not within.any():
            return float(of[-1])
        return float((of * length)[within].sum() / length[within].sum())


def simulate(workload: Workload, capacity: float) -> Course:
    """The course of one view.

    Args:
        capacity: embeddings a second that all its Retinas make.
    """
    popularity = Popularity.of(workload)
    count, rate = popularity.count, popularity.rate
    total = float(count.sum())
    unasked = count * (1 - workload.archived)  # (B,) expected items
    pending = np.zeros_like(count)  # (B,)
    delay = workload.delay
    times = _times(workload)
    rows = []
    before = 0.0
    change_at = workload.change_days * DAY if workload.change == "cold" and workload.change_days else np.inf
    for now in times:
        step = now - before
        if now > change_at:  # a new view, with nothing in it
            unasked, pending = count.copy(), np.zeros_like(count)
            change_at += workload.change_days * DAY
        replaced = -np.expm1(-workload.new_items * step / (DAY * total))
        unasked = unasked * (1 - replaced) + count * replaced
        pending = pending * (1 - replaced)
        asked = unasked * -np.expm1(-rate * step)  # (B,)
        unasked = unasked - asked
        # those still on their way if Retina is fast, and if it takes no more than its capacity
        fast = pending * np.exp(-step / delay) + asked * (delay / step) * -np.expm1(-step / delay)
        known = pending + asked
        every = float(known.sum())
        least = max(float(fast.sum()), every - capacity * step)
        after = known * (least / every) if least > fast.sum() and every > 0 else fast
        # a look-up that comes while the embedding is on its way; of what was asked for in the step, since then
        late = float((rate * 0.5 * (pending + after)).sum()) * step
        rows.append(
            (
                min(1.0, (float(asked.sum()) + late) / (workload.lookups * step)),
                float(asked.sum()) / step,
                delay + max(0.0, float(after.sum()) - delay * float(asked.sum()) / step) / capacity,
                float(after.sum()),
                1 - float(unasked.sum() + after.sum()) / total,
            )
        )
        pending, before = after, now
    oov, per_second, waiting, backlog, archived = np.array(rows).T
    return Course(time=times, oov=oov, asked=per_second, waiting=waiting, backlog=backlog, archived=archived)


def _times(workload: Workload) -> NDArray[np.float64]:
    """Ends of the steps: short ones first, when most changes, and after each change of an encoder."""
    shortest = min(workload.delay / 20, workload.seconds / STEPS)
    growing = np.geomspace(shortest, workload.seconds, STEPS)
    times = [np.linspace(workload.seconds / STEPS, workload.seconds, STEPS), growing]
    if workload.change == "cold" and workload.change_days:
        changes = np.arange(workload.change_days * DAY, workload.seconds, workload.change_days * DAY)[:50]
        times += [changes, *(at + growing[growing < workload.seconds - at][::4] for at in changes)]
    return np.unique(np.concatenate(times))


def hot_hit_rate(workload: Workload) -> float:
    """Share of the look-ups that caches with room for the hot share answer, by Che's approximation of LRU.

    S3-FIFO, which EmbArk has, does better by some points (`benchmarks.hot_cache`).
    """
    popularity = Popularity.of(workload)
    room = workload.hot_share * float(popularity.count.sum())
    if room <= 0:
        return 0.0
    if workload.hot_share >= 1:
        return 1.0
    low, high = 0.0, 1.0
    while float((popularity.count * -np.expm1(-popularity.rate * high)).sum()) < room:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        filled = float((popularity.count * -np.expm1(-popularity.rate * middle)).sum())
        low, high = (middle, high) if filled < room else (low, middle)
    share = popularity.count * popularity.rate
    return float((share * -np.expm1(-popularity.rate * high)).sum() / share.sum())
