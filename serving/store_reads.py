"""Reads of what the hot cache lacks: each key once at a time, by few threads, not at all while the store is down.

What a read of the store takes of this process hardly depends on how many keys it is for: waking threads and going
through the driver is most of it. So what waits when a thread is free is read at once, of several look-ups.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from encoders.spec import EncoderSpec
from feature_repo.embeddings import Embeddings, Status
from feature_repo.failures import FailureMarks
from feature_repo.online_rows import OnlineRows
from feature_repo.session import StoreUnavailable
from serving.breaker import Breaker
from serving.hot_cache import HotCache

logger = logging.getLogger(__name__)

READERS = 4  # threads: reads of the store at a time
MERGED_KEYS = 200  # of reads that are done at once: as many as one query takes
WAITING = 128  # reads that wait for a thread; what is more is answered UNAVAILABLE at once


@dataclass(frozen=True, slots=True)
class Read:
    """One read of several canonical keys.

    Attributes:
        keys: its keys, in the order of `rows`.
        rows: what the store has of them.
        why: keys without a row that are known to fail.
        unknown: keys without a row of which the marks could not be read.
        began: the hot cache's time at the start.
    """

    keys: Sequence[str]
    rows: Embeddings
    why: dict[str, str]
    unknown: frozenset[str]
    began: float

    def part(self, keys: Sequence[str], first: int) -> "Read":
        """Of some of its keys, which stand together from `first` on."""
        at = slice(first, first + len(keys))
        rows = Embeddings(
            vectors=self.rows.vectors[at],
            status=self.rows.status[at],
            embedding_id=self.rows.embedding_id[at],
            event_time=self.rows.event_time[at],
            failures={},
        )
        return Read(keys, rows, self.why, self.unknown, self.began)


@dataclass(frozen=True, slots=True)
class Awaited:
    """A read under way, and where in it some keys of a look-up stand."""

    read: "Future[Read]"
    keys: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A read that has not begun."""

    spec: EncoderSpec
    keys: Sequence[str]
    cache: HotCache
    read: "Future[Read]"


class _Line:
    """Reads that wait for a thread, in order; closed, it hands out what is left, and then None."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._reads: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._reads)

    def put(self, read: _Waiting) -> bool:
        """Whether there was room."""
        with self._changed:
            if len(self._reads) >= self._most:
                return False
            self._reads.append(read)
            self._changed.notify()
            return True

    def take(self) -> list[_Waiting] | None:
        """The next read, and with it those right behind it that are of the same encoder, if they are small."""
        with self._changed:
            while not self._reads:
                if self._closed:
                    return None
                self._changed.wait()
            taken = [self._reads.popleft()]
            count = len(taken[0].keys)
            while self._reads and self._reads[0].cache is taken[0].cache:
                count += len(self._reads[0].keys)
                if count > MERGED_KEYS:
                    break
                taken.append(self._reads.popleft())
            return taken

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class StoreReads:
    """Safe to share between threads.

    Args:
        rows: the online store.
        marks: of keys that are known to fail.
        breaker: around both.
        readers: threads.
        waiting: reads that may wait for one.
    """

    def __init__(
        self,
        rows: OnlineRows,
        marks: FailureMarks,
        *,
        breaker: Breaker | None = None,
        readers: int = READERS,
        waiting: int = WAITING,
    ) -> None:
        self._rows = rows
        self._marks = marks
        self.breaker = breaker or Breaker("the online store")
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, str], tuple[Future[Read], int]] = {}  # view and key → read and row in it
        self._line = _Line(waiting)
        self.refused = 0
        self._threads = [threading.Thread(target=self._work, name=f"store-{i}", daemon=True) for i in range(readers)]
        for thread in self._threads:
            thread.start()

    def begin(self, spec: EncoderSpec, keys: Sequence[str], cache: HotCache) -> list[Awaited]:
        """Reads distinct canonical keys; those that are being read already are waited for, not read again.

        The hits of a read go into the cache, however late it ends. A read that cannot begin fails at once.

        Raises of the reads:
            StoreUnavailable: the store did not answer, is left alone, or too many reads wait.
        """
        awaited: dict[int, Awaited] = {}
        new: list[str] = []
        with self._lock:
            for key in keys:
                found = self._under_way.get((spec.view, key))
                if found is None:
                    new.append(key)
                    continue
                read, row = found
                joined = awaited.setdefault(id(read), Awaited(read))
                joined.keys.append(key)
                joined.rows.append(row)
            if new:
                own: Future[Read] = Future()
                awaited[id(own)] = Awaited(own, new, list(range(len(new))))
                for row, key in enumerate(new):
                    self._under_way[spec.view, key] = (own, row)
        if new:
            self._enqueue(spec, new, cache, own)
        return list(awaited.values())

    @property
    def waiting(self) -> int:
        """Reads that wait for a thread."""
        return len(self._line)

    def close(self) -> None:
        """Ends the threads, when each has finished what it reads; for at most a second each."""
        self._line.close()
        for thread in self._threads:
            thread.join(1)  # a daemon: one that hangs on the store holds nothing up

    def _enqueue(self, spec: EncoderSpec, keys: Sequence[str], cache: HotCache, read: "Future[Read]") -> None:
        why = None
        if not self.breaker.may_ask():
            why = "the online store does not answer, and is left alone for a moment"
        elif not self._line.put(_Waiting(spec, keys, cache, read)):
            self.refused += 1
            why = "too many reads of the online store wait"
        if why is not None:
            self._settle(spec, keys)
            read.set_exception(StoreUnavailable(why))

    def _work(self) -> None:
        while (taken := self._line.take()) is not None:
            spec, cache = taken[0].spec, taken[0].cache
            keys = [key for each in taken for key in each.keys]
            try:
                done = self._read(spec, keys, cache)
            except BaseException as error:  # noqa: BLE001 - told to those who wait; the thread goes on
                if isinstance(error, StoreUnavailable):
                    self.breaker.failed(error)
                self._settle(spec, keys)
                for each in taken:
                    each.read.set_exception(error)
                continue
            self._settle(spec, keys)
            first = 0
            for each in taken:
                each.read.set_result(done.part(each.keys, first))
                first += len(each.keys)

    def _read(self, spec: EncoderSpec, keys: Sequence[str], cache: HotCache) -> Read:
        began = cache.now()
        rows = self._rows.read(spec, keys)
        self.breaker.answered()
        cache.fill(keys, rows, began=began)
        missing = [key for key, status in zip(keys, rows.status.tolist(), strict=True) if status != Status.HIT]
        why: dict[str, str] = {}
        unknown: frozenset[str] = frozenset()
        if missing:
            try:
                why = self._marks.read(spec.view, missing)
            except StoreUnavailable as outage:
                logger.warning("%d keys answered UNAVAILABLE: %s", len(missing), outage)
                self.breaker.failed(outage)
                unknown = frozenset(missing)
        return Read(keys, rows, why, unknown, began)

    def _settle(self, spec: EncoderSpec, keys: Sequence[str]) -> None:
        with self._lock:
            for key in keys:
                self._under_way.pop((spec.view, key), None)
