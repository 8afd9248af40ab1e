"""The look-up: the archived embedding, or the view's OOV embedding and a request for the real one."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Embeddings, Status
from feature_repo.session import StoreUnavailable
from serving.hot_cache import HotCache
from serving.hot_caches import HotCaches
from serving.requests import RequestSink
from serving.store_reads import Awaited, StoreReads

logger = logging.getLogger(__name__)

BUDGET_SECONDS = 10.0  # where neither caller nor settings give one
WARN_SECONDS = 1.0  # between two lines of the log about an outage


class Archive(Protocol):
    """Answers look-ups."""

    def spec(self, view: str) -> EncoderSpec:
        """The encoder of a view.

        Raises:
            UnknownView: there is none of that name.
        """
        ...

    def lookup(self, view: str, keys: Sequence[str], seconds: float | None = None) -> Embeddings:
        """The embeddings of `keys`, in their order, after at most `seconds`.

        Raises:
            UnknownView: there is no such view.
        """
        ...

    async def answer(
        self,
        view: str,
        keys: Sequence[str],
        seconds: float | None = None,
        room: Embeddings | None = None,
    ) -> Embeddings:
        """As `lookup`, on an event loop, which it never blocks for longer than numpy needs.

        Args:
            room: of N keys, of any content, where the answer is put; None: in memory of its own.

        Raises:
            UnknownView: there is no such view.
        """
        ...

    def announce(self, view: str, keys: Sequence[str], published_at: Sequence[int] | None, *, bulk: bool) -> int:
        """Asks for keys that are known before anybody looks them up; how many requests were taken.

        Raises:
            UnknownView: there is no such view.
        """
        ...


class EmbeddingArchive:
    """Look-ups in the hot cache, then in the online store. Safe to share between threads.

    Args:
        directory: the registered encoders.
        reads: of the online store.
        requests: where missing keys are asked for.
        caches: the hot caches.
        budget: seconds that a look-up may take, whatever its caller allows.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        directory: EncoderDirectory,
        reads: StoreReads,
        requests: RequestSink,
        caches: HotCaches,
        *,
        budget: float = BUDGET_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._reads = reads
        self._requests = requests
        self._caches = caches
        self._budget = budget
        self._clock = clock
        self._warned_at = float("-inf")

    def spec(self, view: str) -> EncoderSpec:
        return self._directory.spec(view)

    def lookup(self, view: str, keys: Sequence[str], seconds: float | None = None) -> Embeddings:
        seconds = self._budget if seconds is None else min(seconds, self._budget)
        by = self._clock() + seconds
        under_way = self._begin(view, keys)
        if under_way.awaited:
            wait([each.read for each in under_way.awaited], max(0.0, by - self._clock()))
            self._finish(under_way, patient=seconds >= self._budget)
        return under_way.answer

    async def answer(
        self,
        view: str,
        keys: Sequence[str],
        seconds: float | None = None,
        room: Embeddings | None = None,
    ) -> Embeddings:
        seconds = self._budget if seconds is None else min(seconds, self._budget)
        by = self._clock() + seconds
        under_way = self._begin(view, keys, room)
        if under_way.awaited:
            reads = [asyncio.wrap_future(each.read) for each in under_way.awaited]
            await asyncio.wait(reads, timeout=max(0.0, by - self._clock()))
            for read in reads:
                # The thread's future stays as it is: others may wait for it.
                read.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._finish(under_way, patient=seconds >= self._budget)
        return under_way.answer

    def announce(self, view: str, keys: Sequence[str], published_at: Sequence[int] | None, *, bulk: bool) -> int:
        """Asks for keys that are known before anybody looks them up; how many requests were taken.

        Those that are asked for already, can be no key, or find the queue full are not.

        Args:
            published_at: microseconds since 1970 of each key, the event time of its embedding; now otherwise.
            bulk: behind what look-ups miss.

        Raises:
            UnknownView: there is no such view.
        """
        spec = self._directory.spec(view)
        taken = 0
        for i, key in enumerate(keys):
            try:
                canonical = canonical_key(spec, key)
            except KeyRefused:
                continue
            taken += self._requests.offer(
                view, canonical, published_at=published_at[i] if published_at else None, bulk=bulk
            )
        return taken

    def warm(self, view: str, keys: Sequence[str]) -> int:
        """Reads canonical keys into the hot cache, asking for none that is missing; how many there are.

        Raises:
            UnknownView: there is no such view.
        """
        spec = self._directory.spec(view)
        cache = self._caches.of(spec)
        reads = [each.read for each in self._reads.begin(spec, list(dict.fromkeys(keys)), cache)]
        done, _ = wait(reads, self._budget)
        return sum(int(read.result().rows.found.sum()) for read in done if read.exception() is None)

    def _begin(self, view: str, keys: Sequence[str], room: Embeddings | None = None) -> "_UnderWay":
        """Steps 1 and 2 of a look-up."""
        spec = self._directory.spec(view)
        cache = self._caches.of(spec)
        # 1. what is hot, under whatever spelling
        answer, missing = cache.take(keys, room)
        under_way = _UnderWay(spec, cache, answer)
        if not np.count_nonzero(missing):
            return under_way
        # 2. canonical keys of the rest; one that cannot be a key costs only itself an answer
        for i in np.flatnonzero(missing).tolist():
            try:
                canonical = canonical_key(spec, keys[i])
            except KeyRefused as refusal:
                answer.status[i] = Status.FAILED
                answer.failures[i] = f"KeyRefused: {refusal}"
                continue
            under_way.positions.setdefault(canonical, []).append(i)
            if canonical != keys[i]:
                under_way.spellings.append((keys[i], canonical))
        under_way.awaited = self._reads.begin(spec, list(under_way.positions), cache) if under_way.positions else []
        return under_way

    def _finish(self, under_way: "_UnderWay", *, patient: bool) -> None:
        """Steps 3 to 5 of a look-up, with what has been read by now; `patient`: it had all the time that there is."""
        answer, positions, view = under_way.answer, under_way.positions, under_way.spec.view
        for each in under_way.awaited:
            # 3. a store that does not answer says nothing about any key
            if not each.read.done():
                if patient:  # a caller in a hurry says nothing about the store
                    self._reads.breaker.failed("it did not answer in time")
                self._unavailable(under_way, each.keys, "the online store did not answer in time")
                continue
            try:
                read = each.read.result()
            except StoreUnavailable as outage:
                self._unavailable(under_way, each.keys, outage)
                continue
            # 4. hits
            missing: list[str] = []
            at: list[int] = []
            rows: list[int] = []
            for key, row in zip(each.keys, each.rows, strict=True):
                if read.rows.status[row] == Status.HIT:
                    at += positions[key]
                    rows += [row] * len(positions[key])
                else:
                    missing.append(key)
            answer.vectors[at] = read.rows.vectors[rows]
            answer.embedding_id[at] = read.rows.embedding_id[rows]
            answer.event_time[at] = read.rows.event_time[rows]
            answer.status[at] = Status.HIT
            # 5. of the others, what is not known to fail is asked for
            told = []
            for key in missing:
                if key in read.unknown:
                    answer.status[positions[key]] = Status.UNAVAILABLE
                    continue
                told.append(key)
                if key in read.why:
                    answer.status[positions[key]] = Status.FAILED
                    answer.failures.update(dict.fromkeys(positions[key], read.why[key]))
                else:
                    self._requests.offer(view, key)
            under_way.cache.fill_missing(told, read.why, began=read.began)
        under_way.cache.spell(under_way.spellings)

    def _unavailable(self, under_way: "_UnderWay", keys: Sequence[str], why: object) -> None:
        """Answers `keys` UNAVAILABLE: an outage is no reason to ask for anything."""
        if self._clock() > self._warned_at + WARN_SECONDS:  # not a line a call while it lasts
            self._warned_at = self._clock()
            logger.warning("%d keys of %s answered UNAVAILABLE: %s", len(keys), under_way.spec.view, why)
        for key in keys:
            under_way.answer.status[under_way.positions[key]] = Status.UNAVAILABLE


@dataclass(slots=True)
class _UnderWay:
    """A look-up between its two halves.

    Attributes:
        answer: whole where `awaited` is empty.
        positions: canonical key → where it stands in the answer.
        spellings: keys as given that are not canonical, with those that are.
        awaited: reads of the store.
    """

    spec: EncoderSpec
    cache: HotCache
    answer: Embeddings
    positions: dict[str, list[int]] = field(default_factory=dict)
    spellings: list[tuple[str, str]] = field(default_factory=list)
    awaited: list[Awaited] = field(default_factory=list)
