"""The vectors of a view that are asked for most, in a slab of fixed memory: most look-ups read nothing else.

A dictionary leads from a key, as it is given, to a slot, its canonical form included: every spelling seen leads to the
slot. The keys of a large request are found without it, as the bytes that they are: see `serving.kernels`.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import Embeddings, OovEmbedding, Status, oov_zeros
from serving.eviction import MOST_USES, S3Fifo
from serving.floors import Floors
from serving.kernels import EMBEDDING_ID, EVENT_TIME, EXPIRES, STATUS, USES, answer
from serving.key_table import KeyTable
from serving.packed_keys import PackedKeys

# Of an entry beside its vector: dictionary, key of 100 characters, names, ghost, and what the arrays hold.
OVERHEAD_BYTES = 704
KEY_CHARACTERS = 256  # on average, at most: longer ones make room sooner
NEGATIVES = 20_000  # keys without a vector
MOST_SPELLINGS = 8  # of one key: more would let a stranger fill memory with one picture
OOV_SECONDS = 1.0  # < what anyone waits for an embedding, should its announcement be lost
FAILED = int(Status.FAILED)  # an IntEnum is compared slowly
FAILED_SECONDS = 10.0  # a mark lives for a day, but may be cleared by hand


def unwritten(count: int, dim: int) -> Embeddings:
    """Room for an answer to `count` keys, of any content."""
    return Embeddings(
        vectors=np.empty((count, dim), dtype=np.float32),
        status=np.empty(count, dtype=np.uint8),
        embedding_id=np.empty(count, dtype=np.int64),
        event_time=np.empty(count, dtype=np.int64),
        failures={},
    )


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    hits: int = 0  # keys that were answered, OOV and FAILED ones included
    misses: int = 0
    filled: int = 0
    refused: int = 0  # fills below a floor


class _Index(dict[str, int]):
    """Key → slot; a key that is not here has the slot `nowhere`.

    So a look-up takes all slots with one function of one argument, in half the time of `get` with its default.
    """

    def __init__(self, nowhere: int) -> None:
        self._nowhere = nowhere

    def __missing__(self, key: str) -> int:
        return self._nowhere


class HotCache:
    """The cache of one view. Safe to share between threads.

    Rows are kept until they are evicted (see `serving.eviction`), announced to have changed, or `seconds` old. What is
    known to be missing is kept for a short time, so that misses do not all go to the store.

    Args:
        spec: the encoder of the view.
        megabytes: of vectors and what belongs to them; 0 keeps no vectors.
        seconds: after which a row is read again, should an announcement have been lost.
        clock: seconds, of any origin.
        floors: of this view.
        oov: the OOV embedding to begin with; zeros otherwise.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        megabytes: float,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        floors: Floors | None = None,
        oov: OovEmbedding | None = None,
    ) -> None:
        self.capacity = int(megabytes * 1_000_000 / (4 * spec.dim + OVERHEAD_BYTES))
        self.counts = Counts()
        self._seconds = seconds
        self._clock = clock
        self._floors = Floors() if floors is None else floors  # an empty one has no truth value
        self._lock = threading.Lock()
        # Slots: `capacity` with a row of the slab each, then NEGATIVES that share the OOV row behind them, then one for
        # all keys that are not here, which has always expired.
        self._nowhere = self.capacity + NEGATIVES
        slots = self._nowhere + 1
        self._oov = oov_zeros(spec.view, spec.dim) if oov is None else oov
        self._slab = np.zeros((self.capacity + 1, spec.dim), dtype=np.float32)  # lazily: unused rows cost nothing
        self._slab[self.capacity] = self._oov.vector
        # What else belongs to a slot lies in one place (see `serving.kernels`).
        self._table = KeyTable(slots)
        self._expires = self._table.seconds[:, EXPIRES]
        self._ids, self._times = (self._table.rows[:, at] for at in (EMBEDDING_ID, EVENT_TIME))
        self._status, self._uses = (self._table.small[:, at] for at in (STATUS, USES))
        self._status[:], self._ids[:], self._expires[:] = Status.OOV, self._oov.embedding_id, -np.inf
        self._policy = S3Fifo(self.capacity, self._uses)
        self._names: list[tuple[str, ...]] = [()] * slots  # the canonical key, then other spellings
        self._index = _Index(self._nowhere)
        self._characters = 0
        self._why: dict[int, str] = {}
        self._next_negative = 0

    @property
    def evicted(self) -> int:
        return self._policy.evicted

    def __len__(self) -> int:
        """Keys with a vector."""
        with self._lock:
            return int(np.count_nonzero(self._expires[: self.capacity] > self._clock()))

    def take(self, keys: Sequence[str], room: Embeddings | None = None) -> tuple[Embeddings, NDArray[np.bool_]]:
        """What is known of keys, as they were given, and which of them nothing is known of, (N,).

        Those are answered with the OOV embedding, as if they were.

        Args:
            room: of N keys, of any content, where the answer is put; None: in memory of its own.

        Raises:
            BadArgument: one of packed keys is no valid UTF-8.
        """
        count = len(keys)
        missing = np.empty(count, dtype=np.bool_)
        told = unwritten(count, self._slab.shape[1]) if room is None else room
        with self._lock:
            slots = self._slots(keys)
            misses, failed = answer(
                slots,
                self._table.rows,
                self._table.seconds,
                self._table.small,
                self._slab,
                self._nowhere,
                MOST_USES,
                FAILED,
                self._clock(),
                missing,
                told.vectors,
                told.status,
                told.embedding_id,
                told.event_time,
            )
            self.counts.hits += count - misses
            self.counts.misses += misses
            if failed:
                for i in np.flatnonzero(told.status == FAILED).tolist():
                    told.failures[i] = self._why[int(slots[i])]
        return told, missing

    def _slots(self, keys: Sequence[str]) -> NDArray[np.int64]:
        if not isinstance(keys, PackedKeys):
            return np.fromiter(map(self._index.__getitem__, keys), np.int64, len(keys))
        slots, lost = self._table.find(keys, self._nowhere)
        if lost:
            for i in np.flatnonzero(slots == self._nowhere).tolist():
                slots[i] = self._index[keys[i]]
        return slots

    def now(self) -> float:
        """The time at which a read begins: `fill` and `fill_missing` want it."""
        return self._clock()

    def fill(self, keys: Sequence[str], read: Embeddings, *, began: float) -> None:
        """Keeps the hits among canonical keys that were read from the store.

        A row that an announcement has made history since is dropped: no late fill restores it.
        """
        with self._lock:
            if not self.capacity or began < self._floors.complete_since:
                return
            now = self._clock()
            slots: list[int] = []
            rows: list[int] = []
            for row in np.flatnonzero(read.found).tolist():
                key, moment = keys[row], int(read.event_time[row])
                floor = self._floors.get(key)
                if floor is not None and not floor.admits(moment, int(read.embedding_id[row])):
                    self.counts.refused += 1
                    continue
                slot = self._index[key]
                if slot < self.capacity:
                    if self._times[slot] > moment and self._expires[slot] > now:
                        continue  # two reads may overtake each other
                else:
                    spellings = self._forget(slot) if slot < self._nowhere else ()
                    slot = self._policy.place(hash(key))
                    self._forget(slot)
                    self._name(slot, (key, *spellings[1:]))
                slots.append(slot)
                rows.append(row)
            self._slab[slots] = read.vectors[rows]
            self._ids[slots] = read.embedding_id[rows]
            self._times[slots] = read.event_time[rows]
            self._status[slots] = Status.HIT
            self._expires[slots] = now + self._seconds
            self.counts.filled += len(slots)
            while self._characters > KEY_CHARACTERS * (self.capacity + NEGATIVES) and self._index:
                self._release_characters()

    def fill_missing(self, keys: Iterable[str], why: dict[str, str], *, began: float) -> None:
        """Keeps for a short time that the store has no row of canonical keys; those in `why` are known to fail."""
        with self._lock:
            if began < self._floors.complete_since:
                return
            now = self._clock()
            for key in keys:
                floor = self._floors.get(key)
                if floor is not None and floor.embedding_id is not None:
                    continue  # embedded while it was read
                slot = self._index[key]
                if slot < self.capacity and self._expires[slot] > now:
                    continue  # another read found it
                spellings: tuple[str, ...] = (key,)
                if slot < self.capacity or slot == self._nowhere:
                    if slot < self.capacity:
                        spellings = self._forget(slot)
                    slot = self.capacity + self._next_negative
                    self._next_negative = (self._next_negative + 1) % NEGATIVES
                    self._forget(slot)
                    self._name(slot, spellings)
                failed = why.get(key)
                self._status[slot] = Status.OOV if failed is None else Status.FAILED
                self._why.pop(slot, None)
                if failed is not None:
                    self._why[slot] = failed
                self._expires[slot] = now + (OOV_SECONDS if failed is None else FAILED_SECONDS)

    def spell(self, spellings: Iterable[tuple[str, str]]) -> None:
        """Lets other spellings lead to the slots of canonical keys: pairs of (as given, canonical)."""
        with self._lock:
            for given, key in spellings:
                slot = self._index.get(key)
                if slot is not None and given not in self._index and len(self._names[slot]) < MOST_SPELLINGS:
                    self._name(slot, (*self._names[slot], given))

    def embedded(self, key: str, event_time: int, embedding_id: int) -> None:
        """A row of a canonical key was written: what is older is history, in the cache and in reads under way."""
        with self._lock:
            self._floors.raise_to(key, event_time, embedding_id, self._clock())
            self._drop_below(key)

    def invalidated(self, key: str, event_time: int) -> None:
        """The row of a canonical key at `event_time`, and all older ones, were removed."""
        with self._lock:
            self._floors.raise_to(key, event_time, None, self._clock())
            self._drop_below(key)

    def answer_missing_with(self, oov: OovEmbedding) -> None:
        """The view's OOV embedding from now on, vector and id at once; one that is older than that known is dropped."""
        with self._lock:
            if oov.event_time > self._oov.event_time:
                self._oov = oov
                self._slab[self.capacity] = oov.vector
                self._ids[self.capacity :] = oov.embedding_id

    def failed(self, key: str) -> None:
        """A canonical key was marked as failed: that it is OOV is not so any more."""
        with self._lock:
            slot = self._index[key]
            if self.capacity <= slot < self._nowhere:
                self._forget(slot)

    def distrust(self) -> None:
        """Announcements may have been missed: what is here, and what is being read, may be history."""
        with self._lock:
            self._expires[:] = -np.inf
            self._floors.complete_since = self._clock()

    def hottest(self, count: int) -> list[str]:
        """At most `count` canonical keys, those least likely to be evicted first."""
        with self._lock:
            kept = (self._names[slot] for slot in self._policy.by_standing())
            return [names[0] for names in kept if names][:count]

    def _drop_below(self, key: str) -> None:
        slot = self._index[key]
        floor = self._floors.get(key)
        if slot < self._nowhere and floor is not None:
            admitted = floor.admits(int(self._times[slot]), int(self._ids[slot]))
            if slot >= self.capacity or not admitted:
                self._forget(slot)

    def _name(self, slot: int, names: tuple[str, ...]) -> None:
        self._characters += sum(map(len, names)) - sum(map(len, self._names[slot]))
        self._names[slot] = names
        for name in names:
            self._index[name] = slot
        self._table.name(slot, names[-1])  # as it was asked for last, if in other spellings than the canonical one

    def _forget(self, slot: int) -> tuple[str, ...]:
        """Empties a slot; the names that led to it."""
        names = self._names[slot]
        for name in names:
            del self._index[name]
        self._characters -= sum(map(len, names))
        self._names[slot] = ()
        self._table.forget(slot)
        self._expires[slot] = -np.inf
        self._uses[slot] = 0  # an empty slot is the next to be used
        self._times[slot] = 0
        self._ids[slot] = self._oov.embedding_id
        self._why.pop(slot, None)
        return names

    def _release_characters(self) -> None:
        for slot in (*range(self.capacity, self._nowhere), *reversed(self._policy.by_standing())):
            if self._names[slot]:
                self._forget(slot)
                if self._characters <= KEY_CHARACTERS * (self.capacity + NEGATIVES) // 2:
                    return
