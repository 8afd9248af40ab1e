"""What a person does about dead letters: picks some, sends their requests again, removes old ones."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError

from feature_repo.failures import FailureMarks
from materializer.dead_letter import DeadLetter
from materializer.failures import FLUSH_SECONDS, Producer
from materializer.messages import EmbedRequest, MalformedMessage, Topics

CHUNK = 500  # requests that wait for the broker at once: 25 MB of the longest keys


class NoSuchLetter(LookupError):
    """No dead letter has this position; the message says how positions are found."""


class RetryStopped(Exception):
    """Some requests were not sent again; the message says how many were, and why no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A letter that cannot be sent again, and why."""

    letter: DeadLetter
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """A request to send again, for all letters of one view and key.

    Attributes:
        letters: what it answers, at least one.
        request: as it was asked for first.
        topic: where it goes: that of its priority.
    """

    letters: tuple[DeadLetter, ...]
    request: EmbedRequest
    topic: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Purge:
    """What is to be removed from the dead-letter topic: all before an offset, in each partition.

    Attributes:
        before: partition → offset of the first message that stays.
        messages: how many go; a letter that was written twice counts twice.
    """

    before: dict[TopicPartition, int]
    messages: int


def select(
    letters: Iterable[DeadLetter],
    *,
    view: str | None = None,
    reason: str | None = None,
    positions: Sequence[str] = (),
) -> list[DeadLetter]:
    """Those letters that are of the view, the reason and the positions that are given, in their order.

    Raises:
        NoSuchLetter: a position is that of none of `letters`.
    """
    known = list(letters)
    if missing := set(positions) - {letter.position for letter in known}:
        raise NoSuchLetter(
            f"no dead letter at {', '.join(sorted(missing))}: `embark dead-letters list` shows them,"
            " each with its TOPIC:PARTITION:OFFSET"
        )
    return [
        letter
        for letter in known
        if view in (None, letter.view)
        and reason in (None, letter.reason)
        and (not positions or letter.position in positions)
    ]


def count_by_view_and_reason(letters: Iterable[DeadLetter]) -> list[tuple[str, str, int]]:
    """(view, reason, letters), most first."""
    counts = Counter((letter.view, letter.reason) for letter in letters)
    return sorted(((view, reason, count) for (view, reason), count in counts.items()), key=lambda c: (-c[2], c[:2]))


def plan_retry(letters: Iterable[DeadLetter], topics: Topics) -> tuple[list[Retry], list[Refused]]:
    """What to send again for the letters, and which of them hold no request.

    One request for all letters of a view and key: it may have failed again and again, and the time at which it was
    first asked for is the event's.
    """
    found: dict[tuple[str, str], list[tuple[DeadLetter, EmbedRequest]]] = {}
    refused = []
    for letter in letters:
        try:
            request = _original(letter)
        except MalformedMessage as error:
            why = f"it holds no request: {error}"
            if letter.size > len(letter.value):
                why = f"only {len(letter.value)} of the {letter.size} bytes of its message were kept"
            refused.append(Refused(letter=letter, why=why))
            continue
        found.setdefault((request.view, request.key), []).append((letter, request))
    retries = []
    for together in found.values():
        request = min((request for _, request in together), key=lambda r: r.requested_at)
        # A look-up's miss does not queue behind a backfill that asked for the same.
        live = any(request.priority == "live" and letter.topic != topics.bulk for letter, request in together)
        retries.append(
            Retry(
                letters=tuple(letter for letter, _ in together),
                request=replace(request, priority="live" if live else "bulk"),
                topic=topics.live if live else topics.bulk,
            )
        )
    return retries, refused


def _original(letter: DeadLetter) -> EmbedRequest:
    """The request of a letter, untried.

    Key and time are those that KFC had made of the message: canonical, under which the failure is marked, and not in
    the future of the first try.
    """
    request = EmbedRequest.decode(letter.value)
    return replace(
        request,
        key=letter.key or request.key,
        requested_at=letter.requested_at or request.requested_at,
        attempt=0,
        not_before=0,
    )


def send_again(
    retries: Sequence[Retry],
    *,
    producer: Producer,
    marks: FailureMarks,
    acknowledged: Callable[[int], None] = lambda _: None,
) -> None:
    """Clears the failure marks and sends the requests; each is acknowledged by the broker when this returns.

    Marks first: KFC drops what is marked. Whatever happens between the two, a look-up asks for the key again.

    Args:
        acknowledged: told how many more requests the broker has.

    Raises:
        RetryStopped: the broker did not take all of them.
        StoreUnavailable: a mark could not be cleared; the requests from there on were not sent.
    """
    done = 0
    for start in range(0, len(retries), CHUNK):
        chunk = retries[start : start + CHUNK]
        by_view: dict[str, list[str]] = {}
        for retry in chunk:
            by_view.setdefault(retry.request.view, []).append(retry.request.key)
        for view, keys in by_view.items():
            marks.clear(view, keys)
        try:
            sent = [producer.send(r.topic, r.request.encode(), r.request.partition_key) for r in chunk]
            producer.flush(timeout=FLUSH_SECONDS)
            for future in sent:
                future.get(timeout=FLUSH_SECONDS)
        except KafkaError as error:
            raise RetryStopped(
                f"Kafka has taken {done} of {len(retries)} requests, and perhaps some of the next {len(chunk)}:"
                f" {error!r}; run the same command again: what has been embedded by then is not embedded twice"
            ) from error
        done += len(chunk)
        acknowledged(len(chunk))


def plan_purge(consumer: Any, topics: Topics, before: datetime | None) -> Purge:
    """What goes if all letters that came in before a time are removed, by the broker's clock; all of now if None.

    Args:
        consumer: a `KafkaConsumer` without a group; it is left as it is.
        before: with a time zone.

    Raises:
        KafkaError: Kafka does not answer.
    """
    partitions = [TopicPartition(topics.dead_letters, p) for p in consumer.partitions_for_topic(topics.dead_letters)]
    if not partitions:
        return Purge(before={}, messages=0)
    first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    stays = dict(end)
    if before is not None:
        milliseconds = max(0, round(before.timestamp() * 1000))
        for partition, found in consumer.offsets_for_times(dict.fromkeys(partitions, milliseconds)).items():
            if found is not None:  # else all came in before
                stays[partition] = min(found.offset, end[partition])
    goes = {partition: offset for partition, offset in stays.items() if offset > first[partition]}
    return Purge(before=goes, messages=sum(offset - first[partition] for partition, offset in goes.items()))


def purge(admin: Any, plan: Purge) -> None:
    """Removes what was planned; letters that came in since stay.

    Args:
        admin: a `KafkaAdminClient`.

    Raises:
        KafkaError: Kafka does not answer, or refuses; some may be gone.
    """
    if plan.before:
        admin.delete_records(plan.before)
