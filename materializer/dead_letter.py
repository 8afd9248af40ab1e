"""Requests that will never be embedded: the original bytes, and in headers why and where they came from."""

import time
from dataclasses import dataclass
from typing import Any, Self

from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError

from materializer.group import Record
from materializer.messages import MAX_DEAD_LETTER_BYTES, EmbedRequest, Topics

KEPT_BYTES = MAX_DEAD_LETTER_BYTES // 2  # of a message; only what was compressed on its way in can be longer
KEPT_CHARACTERS = 2000  # of a detail: it may quote a stranger's input
READ_SECONDS = 30.0  # without any progress; then Kafka is taken for down


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """One request that was given up.

    Attributes:
        reason: name of the error, stable: `NotFound`, `MalformedMessage`.
        detail: the error's message.
        view, key, attempt, requested_at: of the request, as `EmbedRequest` has them; empty and 0 where the message is
            no request. `attempt` counts the tries before the last one.
        topic, partition, offset: where KFC read it.
        failed_at: when it was given up, microseconds since 1970.
        value: the message as KFC read it, its first 2 MiB if it is longer.
        size: length of the message in bytes.
    """

    reason: str
    detail: str
    view: str
    key: str
    attempt: int
    requested_at: int
    topic: str
    partition: int
    offset: int
    failed_at: int
    value: bytes
    size: int

    @classmethod
    def of(cls, record: Record, request: EmbedRequest | None, *, reason: str, detail: str, failed_at: int) -> Self:
        """The dead letter for a consumed record; `request` is None where it holds none."""
        value = record.value or b""
        return cls(
            reason=reason,
            detail=detail[:KEPT_CHARACTERS],
            view=request.view if request else "",
            key=request.key if request else "",
            attempt=request.attempt if request else 0,
            requested_at=request.requested_at if request else 0,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            failed_at=failed_at,
            value=value[:KEPT_BYTES],
            size=len(value),
        )

    @property
    def position(self) -> str:
        """`TOPIC:PARTITION:OFFSET` where KFC read it: what names a letter, also where it was written twice."""
        return f"{self.topic}:{self.partition}:{self.offset}"

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """All but the value, as headers of the message."""
        # A detail may quote half of a surrogate pair, which has no UTF-8.
        return [(name, str(getattr(self, name)).encode(errors="replace")) for name in (*TEXTS, *NUMBERS)]

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """The dead letter in a record of the dead-letter topic; what a header lacks or garbles is empty or 0."""
        headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        fields: dict[str, Any] = {name: headers.get(name, "") for name in TEXTS}
        fields |= {name: _number(headers.get(name, "")) for name in NUMBERS}
        return cls(**fields, value=record.value or b"")


TEXTS = ("reason", "detail", "view", "key", "topic")
NUMBERS = ("attempt", "requested_at", "partition", "offset", "failed_at", "size")


def read_dead_letters(consumer: Any, topics: Topics) -> list[DeadLetter]:
    """All dead letters that are in the topic now, oldest first.

    One that was written twice, because a worker died before it committed, is answered once.

    Args:
        consumer: a `KafkaConsumer` without a group and without a subscription; it is left open.

    Raises:
        KafkaError: Kafka does not answer.
    """
    partitions = [TopicPartition(topics.dead_letters, p) for p in consumer.partitions_for_topic(topics.dead_letters)]
    if not partitions:
        return []
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    letters: dict[tuple[str, int, int], DeadLetter] = {}
    deadline = time.monotonic() + READ_SECONDS
    while any(consumer.position(p) < ends[p] for p in partitions):
        if time.monotonic() > deadline:
            raise KafkaTimeoutError(f"topic {topics.dead_letters} gave nothing for {READ_SECONDS:.0f} s")
        for records in consumer.poll(timeout_ms=1000).values():
            deadline = time.monotonic() + READ_SECONDS
            for letter in map(DeadLetter.from_record, records):
                letters.setdefault((letter.topic, letter.partition, letter.offset), letter)
    return sorted(letters.values(), key=_age)


def _age(letter: DeadLetter) -> tuple[int, str, int, int]:
    return (letter.failed_at, letter.topic, letter.partition, letter.offset)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
