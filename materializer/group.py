"""One member of the consumer group: takes records, keeps its place while work stalls, commits what is done."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from materializer.clock import Clock

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # one wait for a first record: how soon a request to stop is seen
FIRST_SECONDS = (
    0.02  # one wait for records that go first, while others may be waiting: time for an answer of the broker
)
MAX_BYTES = 16 << 20  # of messages, then a batch is full: 512 keys of 8 KiB fit in, not 512 of Kafka's longest, 1 MiB
COMMIT_SECONDS = 30.0
LEAVE_SECONDS = 10.0


class Record(Protocol):
    """What is read of kafka-python's `ConsumerRecord`."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970; of the broker's clock, as our topics are set."""
        ...

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Consumer(Protocol):
    """What is used of `KafkaConsumer`."""

    def subscribe(self, *, topics: Sequence[str], listener: Any) -> None: ...
    def poll(self, *, timeout_ms: int, max_records: int | None = None) -> Mapping[TopicPartition, list[Any]]: ...
    def assignment(self) -> Collection[TopicPartition]: ...
    def pause(self, *partitions: TopicPartition) -> None: ...
    def resume(self, *partitions: TopicPartition) -> None: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], timeout_ms: int) -> None: ...
    def commit_async(
        self, offsets: Mapping[TopicPartition, OffsetAndMetadata], callback: Callable[[Any, Any], None]
    ) -> object: ...
    def close(self, *, autocommit: bool, timeout_ms: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """Records that were taken together, and of which ownership of their partitions they are."""

    records: tuple[Record, ...]
    terms: Mapping[TopicPartition, int]

    def only(self, records: Sequence[Record]) -> "Taken":
        """These of the records."""
        return Taken(tuple(records), self.terms)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(slots=True)
class Commit:
    """A commit on its way.

    Attributes:
        done: whether it has ended; told while this member polls.
        error: why the offsets are not known to be committed, if they are not.
    """

    done: bool = False
    error: BaseException | None = None

    def end(self, answer: object) -> None:
        """Ends it, with the broker's answer or what came in its way."""
        self.done, self.error = True, answer if isinstance(answer, BaseException) else None


class GroupMember(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands out records and commits their offsets; used by one thread.

    A rebalance happens only inside `poll`, while this thread waits there. It commits nothing: what was durable had been
    committed before, and what was not must be read again by the partition's next owner. It only notes which partitions
    went, and their records are then neither worked on nor committed any more.

    Args:
        consumer: with `enable_auto_commit=False`; this member subscribes and closes it.
        clock: tells how long a batch has been filling and when a resting partition is due.
    """

    def __init__(self, consumer: Consumer, clock: Clock) -> None:
        self._consumer = consumer
        self._clock = clock
        self._later: frozenset[str] = frozenset()
        self._holding = False
        self._lost: set[TopicPartition] = set()  # and not yet forgotten by `take`
        self._terms: dict[TopicPartition, int] = {}  # how often each was lost; read by other threads
        self._resting: dict[TopicPartition, int] = {}  # paused until then, microseconds since 1970

    def join(self, *first: str, later: Collection[str] = ()) -> None:
        """Subscribes to topics; partitions come with the first `take`. Those in `later` wait for all of `first`."""
        self._later = frozenset(later)
        self._consumer.subscribe(topics=[*first, *later], listener=self)

    def take(
        self,
        most: int,
        max_age: float,
        stop: threading.Event,
        most_later: int | None = None,
        seconds: float = IDLE_SECONDS,
    ) -> Taken:
        """Up to `most` records, or those that came within `max_age` seconds of the first, half of that where half came;
        none where none came.

        Fewer where they are so long that memory would not hold many batches of them.
        Where no record of the topics that go first is waiting: up to `most_later` of any.

        Args:
            seconds: for which a first record is waited for.
        """
        self._forget_lost()
        records: list[Record] = []
        if self._later:
            self._hold_later(True)
            records = self._fill(most, max_age, FIRST_SECONDS, stop)
            self._hold_later(False)
        if not records:
            records = self._fill(most_later or most, max_age, seconds, stop)
        return Taken(tuple(records), dict(self._terms))

    def _fill(self, most: int, max_age: float, seconds: float, stop: threading.Event) -> list[Record]:
        """What comes within `seconds`, and within `max_age` seconds of the first, less the fuller the batch is."""
        batch: dict[TopicPartition, list[Record]] = {}
        deadline, first = self._clock.monotonic() + seconds, None
        while not stop.is_set():
            count = sum(map(len, batch.values()))
            size = sum(len(record.value or b"") for records in batch.values() for record in records)
            if first is not None:
                deadline = first + max_age * (1 - count / most)  # the fuller it is, the less there is to wait for
            left = deadline - self._clock.monotonic()
            if count >= most or size >= MAX_BYTES or left < 0.001:  # Kafka is asked for whole milliseconds
                break
            self._wake_due()
            try:
                polled = self._consumer.poll(timeout_ms=max(1, round(left * 1000)), max_records=most - count)
            except KafkaError as error:
                logger.warning("Kafka gave no records: %r; asking again", error)
                stop.wait(IDLE_SECONDS)
                continue
            for partition in self._forget_lost():  # before what was polled after they went
                batch.pop(partition, None)
            if polled and first is None:
                first = self._clock.monotonic()
            for partition, records in polled.items():
                batch.setdefault(partition, []).extend(records)
        return [record for records in batch.values() for record in records]

    def _hold_later(self, held: bool) -> None:
        self._holding = held
        partitions = {p for p in self._consumer.assignment() if p.topic in self._later}
        if held:
            self._consumer.pause(*partitions)
        else:
            self._consumer.resume(*(partitions - set(self._resting)))

    def rest(self, record: Record, until: int) -> None:
        """Reads on in the record's partition, from that very record, when it is due at `until` (µs since 1970)."""
        partition = partition_of(record)
        self._consumer.seek(partition, record.offset)
        self._consumer.pause(partition)
        self._resting[partition] = until

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Lets time pass without taking records, polling so that the group does not evict this member."""
        until = self._clock.monotonic() + seconds
        while not stop.is_set() and (left := until - self._clock.monotonic()) > 0:
            self.stay(min(left, IDLE_SECONDS), stop)

    def stay(self, seconds: float, stop: threading.Event) -> None:
        """One poll with all partitions paused."""
        self._consumer.pause(*self._consumer.assignment())
        try:
            polled = self._consumer.poll(timeout_ms=max(1, round(seconds * 1000)))
            for partition, records in polled.items():
                # Assigned in that very poll, so not paused: read again later.
                self._consumer.seek(partition, records[0].offset)
        except KafkaError as error:
            logger.warning("Kafka does not answer: %r; asking again", error)
            stop.wait(seconds)
        self._consumer.resume(*(set(self._consumer.assignment()) - (set(self._resting) - self._lost)))

    def still_has(self, taken: Taken) -> bool:
        """Whether any of the records is still this member's to commit. Any thread may ask."""
        return any(self._holds(taken, partition_of(record)) for record in taken.records)

    def rewind(self, batches: Iterable[Taken]) -> None:
        """Reads the records again with the next `take`, where their partitions are still this member's."""
        first: dict[TopicPartition, int] = {}
        for taken in batches:
            for record in taken.records:
                partition = partition_of(record)
                if self._holds(taken, partition):
                    first[partition] = min(record.offset, first.get(partition, record.offset))
        for partition in set(first) & set(self._consumer.assignment()):
            self._consumer.seek(partition, first[partition])
            self._resting.pop(partition, None)
            self._consumer.resume(partition)

    def commit(self, taken: Taken) -> None:
        """Commits the offsets after the records: every effect of theirs, and of all before them, is durable.

        Raises:
            KafkaError: it is not known to be committed; a rebalance may be under way.
        """
        if offsets := self._after([taken]):
            self._consumer.commit(offsets, timeout_ms=round(COMMIT_SECONDS * 1000))

    def begin_commit(self, batches: Iterable[Taken]) -> Commit:
        """As `commit`, of several at once, and without waiting: it ends while this member polls, tried once."""
        commit, offsets = Commit(), self._after(batches)
        if not offsets:
            commit.end(None)
            return commit
        try:
            self._consumer.commit_async(offsets, callback=lambda _, answer: commit.end(answer))
        except KafkaError as error:
            commit.end(error)
        return commit

    def _after(self, batches: Iterable[Taken]) -> dict[TopicPartition, OffsetAndMetadata]:
        """The offsets to commit."""
        after: dict[TopicPartition, int] = {}
        for taken in batches:
            for record in taken.records:
                partition = partition_of(record)
                # Of a partition that went, the new owner may have committed more: never set it back.
                if self._holds(taken, partition):
                    after[partition] = max(record.offset + 1, after.get(partition, 0))
        return {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in after.items()}

    def _holds(self, taken: Taken, partition: TopicPartition) -> bool:
        return taken.terms.get(partition, 0) == self._terms.get(partition, 0)

    def leave(self) -> None:
        """Leaves the group, so that the others take over at once; commits nothing."""
        self._consumer.close(autocommit=False, timeout_ms=round(LEAVE_SECONDS * 1000))

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Called by the consumer, inside `poll`."""
        self._lose(revoked)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Called by the consumer, inside `poll`, when the group has evicted this member."""
        logger.warning("the group has evicted this worker: %d partitions are read again by others", len(lost))
        self._lose(lost)

    def _lose(self, partitions: Collection[TopicPartition]) -> None:
        self._lost.update(partitions)
        for partition in partitions:
            self._terms[partition] = self._terms.get(partition, 0) + 1

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Called by the consumer, inside `poll`; they start at their committed offsets."""
        logger.info("assigned: %s", ", ".join(f"{p.topic}[{p.partition}]" for p in sorted(assigned)))
        if self._holding:
            self._consumer.pause(*(p for p in assigned if p.topic in self._later))

    def _forget_lost(self) -> set[TopicPartition]:
        lost, self._lost = self._lost, set()
        for partition in lost:
            self._resting.pop(partition, None)
        return lost

    def _wake_due(self) -> None:
        now = self._clock.now()
        for partition in [p for p, until in self._resting.items() if until <= now]:
            del self._resting[partition]
            self._consumer.resume(partition)


def partition_of(record: Record) -> TopicPartition:
    """Where the record lies."""
    return TopicPartition(record.topic, record.partition)
