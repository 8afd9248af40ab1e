import threading
from collections.abc import Callable

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from prometheus_client import CollectorRegistry

from materializer.backlog import Backlog, Waiting, measure
from materializer.messages import Topics
from materializer.metrics import WorkerMetrics
from tests.materializer.fakes import PARTITIONS, START, FakeClock, FakeKafka, told_by_kfc

TOPICS = Topics(live="requests")
NAMES = (TOPICS.live, TOPICS.bulk, TOPICS.retry)
SECONDS = 10.0


class Observer:
    """A consumer of the group that is not subscribed."""

    def __init__(self, kafka: FakeKafka) -> None:
        self.kafka = kafka
        self.begins: dict[TopicPartition, int] = {}
        self.positions: dict[TopicPartition, int] = {}
        self.closed = False

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(PARTITIONS))

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {p: self.begins.get(p, 0) for p in partitions}

    def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {p: len(self.kafka.logs.get(p, [])) for p in partitions}

    def committed(self, partition: TopicPartition) -> int | None:
        return self.kafka.committed.get(partition)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.positions = dict.fromkeys(partitions, 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        del self.positions[partition]

    def poll(self, *, timeout_ms: int) -> dict[TopicPartition, list[object]]:
        return {p: self.kafka.logs[p][at:] for p, at in list(self.positions.items())[:1]}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kafka() -> FakeKafka:
    """Two live requests in one partition and one in the other, a second apart each, and a retry."""
    kafka = FakeKafka(FakeClock())
    for partition in (0, 0, 1):
        kafka.append(TOPICS.live, b"x", partition=partition)
        kafka.clock.seconds += 1
    kafka.append(TOPICS.retry, b"x")
    return kafka


def test_what_is_not_committed_waits_since_kafka_has_it(kafka: FakeKafka) -> None:
    begin = START // 1000
    assert measure(Observer(kafka), NAMES) == {
        TOPICS.live: Waiting(3, begin),
        TOPICS.bulk: Waiting(0, None),
        TOPICS.retry: Waiting(1, begin + 3000),
    }
    kafka.committed = {TopicPartition(TOPICS.live, 0): 1, TopicPartition(TOPICS.retry, 0): 1}
    left = measure(Observer(kafka), NAMES)
    assert (left[TOPICS.live], left[TOPICS.retry]) == (Waiting(2, begin + 1000), Waiting(0, None))


def test_what_kafka_has_removed_waits_no_more(kafka: FakeKafka) -> None:
    observer = Observer(kafka)
    observer.begins[TopicPartition(TOPICS.live, 0)] = 2
    assert measure(observer, NAMES)[TOPICS.live] == Waiting(1, START // 1000 + 2000)


def wait_until(holds: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(round(SECONDS / 0.01)):
        if holds():
            return
        waiting.wait(0.01)
    raise AssertionError("waited for too long")


def test_an_outage_of_kafka_is_told_and_ends_by_itself(kafka: FakeKafka, caplog: pytest.LogCaptureFixture) -> None:
    registry, observer, down = CollectorRegistry(), Observer(kafka), threading.Event()

    def open_consumer() -> Observer:
        if down.is_set():
            raise KafkaTimeoutError("nobody there")
        return observer

    def ends(partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        if down.is_set():
            raise KafkaTimeoutError("no answer")
        return Observer.end_offsets(observer, partitions)

    def told(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    def lag() -> float:
        return told("kfc_lag_requests", topic="live") or 0.0

    observer.end_offsets = ends  # type: ignore[method-assign]
    with Backlog(open_consumer, TOPICS, WorkerMetrics(registry), kafka.clock, 0.01):
        wait_until(lambda: lag() == 3.0)
        assert told("kfc_oldest_waiting_seconds", topic="live") == 3.0
        down.set()
        wait_until(lambda: lag() != lag())
        wait_until(lambda: told("kfc_stalled", on="kafka") == 1.0)
        assert observer.closed
        down.clear()
        wait_until(lambda: lag() == 3.0)
        wait_until(lambda: told("kfc_stalled", on="kafka") == 0.0)
    assert [message.split(":")[0] for message in told_by_kfc(caplog)] == [
        "Kafka does not tell how many requests wait",
        "Kafka answers again",
    ]
