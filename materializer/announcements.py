"""Tells on a topic which embeddings have changed, and reads there what was told: for caches of look-ups."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from kafka import TopicPartition
from kafka.errors import KafkaError

from materializer.failures import FLUSH_SECONDS, Failure, Producer
from materializer.messages import Announcement, MalformedMessage, Topics, decode_announcements, encode_announcements

__all__ = ["Announcement", "Announcements", "Announcer", "failed"]

logger = logging.getLogger(__name__)

BACK_OFF_SECONDS = 1.0  # between two tries to reach Kafka, or to find the topic
END_MILLISECONDS = 10_000  # for the broker to tell where the topic ends


class Announcer:
    """Announces what is durable. Not safe for threads.

    Args:
        producer: a `KafkaProducer` with `acks="all"`; it is left open.
    """

    def __init__(self, producer: Producer, topics: Topics) -> None:
        self._producer = producer
        self._topic = topics.embedded

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Sends all and waits until the broker has them. Repeating it tells readers again, which changes nothing.

        Raises:
            KafkaError: not all were acknowledged.
        """
        sent = [self._producer.send(self._topic, message) for message in encode_announcements(announcements)]
        if sent:
            self._producer.flush(timeout=FLUSH_SECONDS)
        for future in sent:
            future.get(timeout=FLUSH_SECONDS)


def failed(failures: Iterable[Failure]) -> list[Announcement]:
    """Those of the failures that marked a key."""
    return [
        Announcement("failed", each.request.view, each.request.key, each.request.requested_at, 0)
        for each in failures
        if each.remedy == "never" and each.canonical and each.request is not None
    ]


class Consumer(Protocol):
    """What is used of a `KafkaConsumer` without a group."""

    def partitions_for_topic(self, topic: str) -> Collection[int]: ...
    def assign(self, partitions: Sequence[TopicPartition]) -> None: ...
    def end_offsets(
        self, partitions: Sequence[TopicPartition], timeout_ms: int | None = None
    ) -> Mapping[TopicPartition, int]: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def poll(self, *, timeout_ms: int) -> Mapping[TopicPartition, Sequence[Any]]: ...
    def close(self) -> None: ...


class Announcements:
    """What is announced from the first `poll` on; used by one thread.

    An outage of Kafka is waited for: nobody can write an announcement meanwhile, and the reader goes on where it was.
    Where it cannot go on there (it was away for longer than announcements are kept, the topic was made anew, a message
    cannot be read), it says so, and goes on at the end.

    Args:
        open_consumer: opens a consumer without a group and with `auto_offset_reset="none"`, as
            `materializer.process.open_announcement_reader`; called by `poll`, again after an error.
        topic: `Topics.embedded`.
        missed: called, in the thread that polls, where announcements may have been missed: whatever was cached before
            may be stale. Also called once before the first announcements are answered.
        wait: lets seconds pass.
    """

    def __init__(
        self,
        open_consumer: Callable[[], Consumer],
        topic: str,
        *,
        missed: Callable[[], None],
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._open_consumer = open_consumer
        self._topic = topic
        self._missed = missed
        self._wait = wait
        self._consumer: Consumer | None = None
        self._reading = False  # from a position that is known
        self._away = False

    def poll(self, timeout: float) -> Sequence[Announcement]:
        """Announcements, as soon as there are some; none after about `timeout` seconds, or where Kafka is away."""
        try:
            if not self._reading and not self._start():
                self._wait(min(timeout, BACK_OFF_SECONDS))  # no such topic yet: no worker has run
                return ()
            assert self._consumer is not None  # noqa: S101 - it reads
            polled = self._consumer.poll(timeout_ms=max(1, round(timeout * 1000)))
        except KafkaError as error:
            self._stop(error)
            self._wait(min(timeout, BACK_OFF_SECONDS))
            return ()
        found: list[Announcement] = []
        for record in (record for records in polled.values() for record in records):
            try:
                found += decode_announcements(record.value)
            except MalformedMessage as error:
                logger.warning("%s[%d] cannot be read: %s", self._topic, record.offset, error)
                self._missed()
        return found

    def close(self) -> None:
        """Closes the consumer; `poll` would open another one."""
        self._reading = False
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _start(self) -> bool:
        """Goes to the end of the topic; False where there is no such topic."""
        if self._consumer is None:
            self._consumer = self._open_consumer()
        partitions = [TopicPartition(self._topic, p) for p in self._consumer.partitions_for_topic(self._topic)]
        if not partitions:
            return False
        self._consumer.assign(partitions)
        for partition, end in self._consumer.end_offsets(partitions, timeout_ms=END_MILLISECONDS).items():
            self._consumer.seek(partition, end)
        self._reading, self._away = True, False
        logger.info("reading what is announced on %s", self._topic)
        self._missed()  # after the end is known: what was announced before it is older than what is cached from now on
        return True

    def _stop(self, error: KafkaError) -> None:
        if not self._away:  # once an outage
            logger.warning("announcements on %s cannot be read: %r; trying again", self._topic, error)
        self._away = True
        try:
            self.close()
        except KafkaError as again:
            logger.debug("closing: %r", again)
