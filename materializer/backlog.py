"""How many requests wait and for how long, asked of Kafka: true also while no worker reads them."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

from kafka import TopicPartition
from kafka.errors import KafkaError

from materializer.clock import Clock
from materializer.messages import Topics
from materializer.metrics import UNKNOWN, WorkerMetrics

logger = logging.getLogger(__name__)

MEASURE_SECONDS = 5.0
READ_SECONDS = 2.0  # for the first waiting request of each partition; what has not come by then is not counted in
JOIN_SECONDS = 5.0  # at the end, a question that Kafka does not answer is not waited for


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests of a topic that the group has not committed.

    Attributes:
        requests: how many.
        since: when Kafka took in the oldest, milliseconds since 1970; None where none waits.
    """

    requests: int
    since: int | None


class Backlog:
    """Measures every few seconds, by a thread and a consumer of its own; a context manager.

    Args:
        open_consumer: a `KafkaConsumer` of the workers' group, which is not subscribed; closed at the end.
        seconds: between two measurements.
    """

    def __init__(
        self,
        open_consumer: Callable[[], Any],
        topics: Topics,
        metrics: WorkerMetrics,
        clock: Clock,
        seconds: float = MEASURE_SECONDS,
    ) -> None:
        self._open_consumer = open_consumer
        self._names = {topics.live: "live", topics.bulk: "bulk", topics.retry: "retry"}
        self._metrics = metrics
        self._clock = clock
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backlog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        with self._metrics.stall() as stall:
            while not self._stop.is_set():
                try:
                    with closing(self._open_consumer()) as consumer:
                        while not self._stop.is_set():
                            self._tell(measure(consumer, tuple(self._names)))
                            if stall.cause:
                                logger.warning("Kafka answers again")
                                stall.on(None)
                            self._stop.wait(self._seconds)
                except (KafkaError, OSError) as error:
                    if not stall.cause:
                        logger.warning("Kafka does not tell how many requests wait: %r", error)
                    stall.on("kafka")
                    for name in self._names.values():
                        self._metrics.backlog(name, UNKNOWN, UNKNOWN)
                    self._stop.wait(self._seconds)

    def _tell(self, measured: Mapping[str, Waiting]) -> None:
        now = self._clock.now() / 1000
        for topic, waiting in measured.items():
            oldest = 0.0 if waiting.since is None else max(0.0, (now - waiting.since) / 1000)
            self._metrics.backlog(self._names[topic], waiting.requests, oldest)


def measure(consumer: Any, topics: tuple[str, ...]) -> dict[str, Waiting]:
    """What waits in each of the topics.

    Args:
        consumer: a `KafkaConsumer` of the group, without a subscription; it is left assigned to anything.

    Raises:
        KafkaError: Kafka does not answer.
    """
    partitions = [TopicPartition(topic, p) for topic in topics for p in sorted(consumer.partitions_for_topic(topic))]
    if not partitions:
        return {topic: Waiting(0, None) for topic in topics}
    begins = consumer.beginning_offsets(partitions)
    # Before the ends, which then are not behind it.
    done = {p: max(consumer.committed(p) or 0, begins[p]) for p in partitions}
    ends = consumer.end_offsets(partitions)
    lag = {p: max(0, ends[p] - done[p]) for p in partitions}
    since = _first_times(consumer, {p: done[p] for p in partitions if lag[p]})
    return {
        topic: Waiting(
            sum(lag[p] for p in partitions if p.topic == topic),
            min((at for p, at in since.items() if p.topic == topic), default=None),
        )
        for topic in topics
    }


def _first_times(consumer: Any, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """When Kafka took in the records at these offsets, milliseconds since 1970."""
    times: dict[TopicPartition, int] = {}
    if not offsets:
        return times
    consumer.assign(list(offsets))
    for partition, offset in offsets.items():
        consumer.seek(partition, offset)
    for _ in range(round(READ_SECONDS / 0.1)):
        for partition, records in consumer.poll(timeout_ms=100).items():
            times.setdefault(partition, records[0].timestamp)
            consumer.pause(partition)  # one record is enough
        if len(times) == len(offsets):
            break
    return times
