from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError, KafkaTimeoutError, OffsetOutOfRangeError

from materializer.announcements import Announcement, Announcements, Announcer
from materializer.messages import Topics, encode_announcements
from tests.materializer.fakes import FakeClock, FakeKafka, FakeProducer

TOPICS = Topics(live="requests")
PARTITION = TopicPartition(TOPICS.embedded, 0)


def about(*keys: str) -> list[Announcement]:
    return [Announcement("embedded", "tiny__v1", key, 7, 11) for key in keys]


class FakeReader:
    """A consumer without a group."""

    def __init__(self, kafka: FakeKafka, errors: deque[Exception]) -> None:
        self.kafka = kafka
        self.errors = errors  # of the polls to come
        self.position = 0
        self.closed = False

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {p.partition for p in self.kafka.logs if p.topic == topic}

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        assert list(partitions) == [PARTITION]

    def end_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: int | None = None) -> dict[Any, int]:
        return {p: len(self.kafka.logs[p]) for p in partitions}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.position = offset

    def poll(self, *, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        if self.errors:
            raise self.errors.popleft()
        records = self.kafka.logs[PARTITION][self.position :]
        self.position += len(records)
        return {PARTITION: records} if records else {}

    def close(self) -> None:
        self.closed = True


class Reading:
    """A reader of announcements, a topic to announce on, and all that may go wrong between them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.kafka = FakeKafka(self.clock)
        self.producer = FakeProducer(self.kafka)
        self.announcer = Announcer(self.producer, TOPICS)
        self.opening: deque[Exception] = deque()
        self.polling: deque[Exception] = deque()
        self.opened: list[FakeReader] = []
        self.missed = 0
        self.announcements = Announcements(self.open, TOPICS.embedded, missed=self.miss, wait=self.wait)

    def open(self) -> FakeReader:
        if self.opening:
            raise self.opening.popleft()
        self.opened.append(FakeReader(self.kafka, self.polling))
        return self.opened[-1]

    def miss(self) -> None:
        self.missed += 1

    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def poll(self) -> list[Announcement]:
        return list(self.announcements.poll(5.0))


@pytest.fixture
def reading() -> Reading:
    return Reading()


def test_a_reader_starts_at_the_end_and_then_hears_of_all(reading: Reading) -> None:
    reading.announcer.announce(about("before"))
    assert reading.poll() == []
    assert reading.missed == 1  # what was cached before the place was known may be stale
    reading.announcer.announce(about("a", "b"))
    reading.announcer.announce([Announcement("invalidated", "tiny__v1", "a", 9, 13)])
    assert reading.poll() == [*about("a", "b"), Announcement("invalidated", "tiny__v1", "a", 9, 13)]
    assert reading.poll() == []
    assert reading.missed == 1


def test_a_reader_waits_for_the_first_worker_to_make_the_topic(reading: Reading) -> None:
    assert reading.poll() == []
    assert (reading.missed, reading.clock.seconds) == (0, 1.0)
    reading.announcer.announce(about("a"))
    assert reading.poll() == []
    reading.announcer.announce(about("b"))
    assert reading.poll() == about("b")
    assert len(reading.opened) == 1


def test_a_reader_waits_for_kafka(reading: Reading) -> None:
    reading.announcer.announce(about("before"))
    reading.opening += [KafkaConnectionError(), KafkaConnectionError()]
    assert [reading.poll(), reading.poll()] == [[], []]
    assert (reading.missed, reading.clock.seconds) == (0, 2.0)
    assert reading.poll() == []
    reading.announcer.announce(about("a"))
    assert reading.poll() == about("a")


@pytest.mark.parametrize("error", [OffsetOutOfRangeError(), KafkaTimeoutError()])
def test_a_reader_that_lost_its_place_says_so_and_goes_on_at_the_end(reading: Reading, error: Exception) -> None:
    reading.announcer.announce(about("before"))
    reading.poll()
    reading.announcer.announce(about("lost"))
    reading.polling.append(error)
    assert reading.poll() == []
    assert (reading.missed, reading.opened[0].closed) == (1, True)
    assert reading.poll() == []
    assert reading.missed == 2
    reading.announcer.announce(about("a"))
    assert reading.poll() == about("a")


def test_what_cannot_be_read_counts_as_missed_and_the_rest_is_answered(reading: Reading) -> None:
    reading.announcer.announce(about("before"))
    reading.poll()
    reading.kafka.append(TOPICS.embedded, b"\xff")
    reading.announcer.announce(about("a"))
    assert reading.poll() == about("a")
    assert reading.missed == 2


def test_an_announcement_that_is_not_acknowledged_is_an_error(reading: Reading) -> None:
    reading.producer.errors.append(KafkaTimeoutError())
    with pytest.raises(KafkaTimeoutError):
        reading.announcer.announce(about("a"))
    reading.announcer.announce([])
    assert reading.kafka.records(TOPICS.embedded) == []


def test_a_batch_is_told_in_few_messages(reading: Reading) -> None:
    reading.announcer.announce(about(*(f"key {n}" for n in range(512))))
    assert len(reading.kafka.records(TOPICS.embedded)) == 8
    assert sum(len(message) for message in encode_announcements(about("a" * 100))) < 200


def test_closing_is_harmless_before_and_after(reading: Reading) -> None:
    closers: list[Callable[[], None]] = [reading.announcements.close]
    closers[0]()
    reading.announcer.announce(about("before"))
    reading.poll()
    closers[0]()
    assert reading.opened[0].closed
