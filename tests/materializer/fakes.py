"""Kafka, Retina and time in memory: what a worker needs, and what a test can break."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaError

from encoders.client import Encoded, Outcome, content_hash, memory_vector
from encoders.spec import EncoderSpec

START = 1_800_000_000_000_000  # µs since 1970
PARTITIONS = 2
PATIENCE_SECONDS = 900.0  # of fake time: then a worker that still waits is stopped


class FakeClock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> int:
        return START + round(self.seconds * 1e6)

    def monotonic(self) -> float:
        return self.seconds


class FakeKafka:
    """Topics and committed offsets."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.logs: dict[TopicPartition, list[Any]] = {}
        self.committed: dict[TopicPartition, int] = {}

    def append(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = 0,
    ) -> None:
        log = self.logs.setdefault(TopicPartition(topic, partition), [])
        stamp = self.clock.now() // 1000
        log.append(
            ConsumerRecord(topic, partition, 0, len(log), stamp, 1, key, value, list(headers), None, None, None, None)
        )

    def records(self, topic: str) -> list[Any]:
        return [record for partition, log in sorted(self.logs.items()) if partition.topic == topic for record in log]

    def lag(self, topics: Collection[str]) -> int:
        return sum(
            len(log) - self.committed.get(partition, 0)
            for partition, log in self.logs.items()
            if partition.topic in topics
        )


class FakeConsumer:
    """A consumer that owns every partition; sets `stop` when all of it is committed, or when patience ends."""

    def __init__(self, kafka: FakeKafka, stop: threading.Event) -> None:
        self.kafka = kafka
        self.stop = stop
        self.patience = kafka.clock.seconds + PATIENCE_SECONDS
        self.before_poll: deque[Callable[[], None]] = deque()  # one a poll
        self.commit_errors: deque[Exception] = deque()
        self.commits: list[dict[TopicPartition, int]] = []
        self.polls_a_commit = 1
        self._committing: list[tuple[Mapping[TopicPartition, OffsetAndMetadata], Callable[[Any, Any], None]]] = []
        self._polls = 0  # since a commit began
        self.positions: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.listener: Any = None
        self.topics: Sequence[str] = ()
        self.closed = False

    def subscribe(self, *, topics: Sequence[str], listener: Any) -> None:
        self.topics, self.listener = topics, listener

    def assign(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            self.positions[partition] = self.kafka.committed.get(partition, 0)
            self.paused.discard(partition)
        self.listener.on_partitions_assigned(partitions)

    def revoke(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            del self.positions[partition]
            self.paused.discard(partition)
        self.listener.on_partitions_revoked(partitions)

    def assignment(self) -> set[TopicPartition]:
        return set(self.positions)

    def poll(self, *, timeout_ms: int, max_records: int | None = None) -> dict[TopicPartition, list[Any]]:
        if self.listener is not None and not self.positions:
            self.assign([TopicPartition(topic, p) for topic in self.topics for p in range(PARTITIONS)])
        self._answer_commits()
        if self.before_poll:
            self.before_poll.popleft()()
        found: dict[TopicPartition, list[Any]] = {}
        left = max_records or 500
        for partition in sorted(set(self.positions) - self.paused):
            position = self.positions[partition]
            records = self.kafka.logs.get(partition, [])[position : position + left]
            if records:
                found[partition] = records
                self.positions[partition] += len(records)
                left -= len(records)
            if not left:
                break
        if not found:
            self.kafka.clock.seconds += timeout_ms / 1000
            self._stop_if_all_is_done()
        return found

    def _stop_if_all_is_done(self) -> None:
        done = all(len(self.kafka.logs.get(p, [])) <= self.kafka.committed.get(p, 0) for p in self.positions)
        if (done and not self.before_poll) or self.kafka.clock.seconds > self.patience:
            self.stop.set()

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        assert set(partitions) <= set(self.positions)
        self.paused -= set(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert partition in self.positions
        self.positions[partition] = offset

    def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], timeout_ms: int) -> None:
        if self.commit_errors:
            raise self.commit_errors.popleft()
        committed = {partition: offset.offset for partition, offset in offsets.items()}
        self.commits.append(committed)
        self.kafka.committed.update(committed)

    def commit_async(
        self, offsets: Mapping[TopicPartition, OffsetAndMetadata], callback: Callable[[Any, Any], None]
    ) -> None:
        """Answered by one of the polls to come."""
        assert not self._committing, "one commit at a time: else they could overtake each other"
        self._committing.append((offsets, callback))
        self._polls = 0

    def _answer_commits(self) -> None:
        self._polls += 1
        if self._polls < self.polls_a_commit:
            return
        waiting, self._committing = self._committing, []
        for offsets, callback in waiting:
            try:
                self.commit(offsets, timeout_ms=0)
            except KafkaError as error:
                callback(offsets, error)
            else:
                callback(offsets, None)

    def close(self, *, autocommit: bool, timeout_ms: int) -> None:
        assert not autocommit
        self.closed = True


class Acknowledgement:
    """The future of one message."""

    error: Exception | None = None

    def get(self, timeout: float) -> None:
        if self.error:
            raise self.error


class FakeProducer:
    """Appends on `flush`; the errors in `errors` befall the flushes to come, each one message of it."""

    def __init__(self, kafka: FakeKafka) -> None:
        self.kafka = kafka
        self.errors: deque[Exception] = deque()
        self._waiting: list[tuple[Acknowledgement, tuple[Any, ...]]] = []

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: list[tuple[str, bytes]] | None = None
    ) -> Acknowledgement:
        acknowledgement = Acknowledgement()
        self._waiting.append((acknowledgement, (topic, value, key, headers or [])))
        return acknowledgement

    def flush(self, timeout: float) -> None:
        waiting, self._waiting = self._waiting, []
        if self.errors and waiting:
            failed, _ = waiting.pop()
            failed.error = self.errors.popleft()
        for _, message in waiting:
            self.kafka.append(*message)


class ScriptedRetina:
    """A `MemoryRetina` whose calls fail, and whose keys have other fates, as told.

    Attributes:
        outcomes: key → the outcomes of its tries, the last one of all that follow.
        errors: raised by the calls to come, one each, before any key is looked at.
        calls: the keys of each call that got as far.
    """

    def __init__(self, specs: Mapping[str, EncoderSpec]) -> None:
        self.specs = dict(specs)
        self.outcomes: dict[str, list[Outcome]] = {}
        self.errors: deque[Exception] = deque()
        self.calls: list[list[str]] = []

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        if self.errors:
            raise self.errors.popleft()
        self.calls.append(list(keys))
        outcomes = tuple(self._outcome(key) for key in keys)
        embedded = [key for key, outcome in zip(keys, outcomes, strict=True) if not outcome.reason]
        spec = self.specs[view]
        vectors = np.array([memory_vector(key, spec.dim) for key in embedded], dtype=np.float32)
        return Encoded(
            vectors=vectors.reshape(len(embedded), spec.dim), outcomes=outcomes, fingerprint=spec.fingerprint
        )

    def _outcome(self, key: str) -> Outcome:
        script = self.outcomes.get(key)
        if not script:
            return Outcome(content_hash=content_hash(key.encode()))
        return script.pop(0) if len(script) > 1 else script[0]


def told_by_kfc(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What KFC itself logged: kafka-python, for one, warns when the machine stands still."""
    return [each.message for each in caplog.records if each.name.startswith("materializer.")]
