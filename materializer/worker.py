"""KFC's loop: requests in, archived embeddings out, at least once and with idempotent effects."""

import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from kafka.errors import KafkaError

from encoders.client import Encoded, RetinaAway, RetinaBusy, RetinaRefused
from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory, UnknownView
from feature_repo.failures import FailureMarks
from materializer.archive import Archive, ArchiveUnavailable, EmbeddedBatch
from materializer.clock import Clock, SystemClock
from materializer.dead_letter import DeadLetter
from materializer.group import Consumer, GroupMember, Record
from materializer.messages import EmbedRequest, MalformedMessage, Topics

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
MAX_RETRY_SECONDS = 60.0  # also the longest that a due retry waits behind another that is not: see `_due`
PROPAGATION_SECONDS = 5.0  # > two readings of the registry, 2 s each: by then Retina and KFC have read the same
MAX_STALL_SECONDS = 10.0  # between two tries at something that is down: how late its return is noticed
RETINA_SECONDS = 60.0  # > slowest batch: 64 images of Inception v3 at 13/s on a CPU, and a download's time-out
FLUSH_SECONDS = 60.0  # > the producer's delivery time-out

# What goes away by itself: the worker waits for it and gives up nothing.
OUTAGES = (
    ArchiveUnavailable,
    RetinaAway,
    RetinaBusy,
    KafkaError,
    NoHostAvailable,  # these three from the failure marks, which translate nothing
    DriverException,
    ConnectionException,
    OSError,
)

T = TypeVar("T")


class Retina(Protocol):
    """What a worker asks of Retina: `encoders.client.RetinaClient`."""

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded: ...


class Producer(Protocol):
    """What is used of `KafkaProducer`."""

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: list[tuple[str, bytes]] | None = None
    ) -> Any: ...

    def flush(self, timeout: float) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Size of a batch in records, its age in seconds, and how often a key is tried."""

    max_batch: int = 64
    max_age: float = 0.2
    max_attempts: int = MAX_ATTEMPTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request that is well formed: view known, key canonical, event time not in the future."""

    record: Record
    request: EmbedRequest
    spec: EncoderSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A request that got no embedding.

    `remedy`: `again` spends an attempt; `later` spends none, the fault is not the key's; `never` is a dead letter.
    """

    record: Record
    request: EmbedRequest | None
    marked: bool  # the key is canonical, so that look-ups can be told that it failed
    reason: str
    detail: str
    remedy: Literal["again", "later", "never"]


class Abandoned(Exception):
    """The batch at hand is not finished: nothing of it is committed, and whoever owns its partitions reads it again."""


def retry_delay(attempt: int) -> float:
    """Seconds until the next try after `attempt` tries before: doubling from 1 s, at most 60 s, less up to half."""
    return float(min(MAX_RETRY_SECONDS, 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0))  # noqa: S311


class Worker:
    """One consumer that embeds what is asked for, in one thread.

    Args:
        consumer: a `KafkaConsumer` with `enable_auto_commit=False`; the worker subscribes and closes it.
        producer: a `KafkaProducer` with `acks="all"`; it is left open.
        retina, archive, marks, directory: the other side effects.
        topics: where requests come from and failures go to.
        clock: time of day and age of batches.
        delay: seconds before the next try, from the number of tries before.
    """

    def __init__(
        self,
        *,
        consumer: Consumer,
        producer: Producer,
        retina: Retina,
        archive: Archive,
        marks: FailureMarks,
        directory: EncoderDirectory,
        topics: Topics,
        clock: Clock | None = None,
        limits: Limits | None = None,
        delay: Callable[[int], float] = retry_delay,
    ) -> None:
        self._clock = clock or SystemClock()
        self._group = GroupMember(consumer, self._clock)
        self._producer = producer
        self._retina = retina
        self._archive = archive
        self._marks = marks
        self._directory = directory
        self._topics = topics
        self._limits = limits or Limits()
        self._delay = delay

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; then finishes the batch at hand, commits it and leaves the group.

        A batch that waits for an outage when `stop` comes is given back unfinished: the next worker reads it again.
        """
        self._group.join(self._topics.live, self._topics.retry)
        try:
            while not stop.is_set():
                # 1. poll
                records = self._due(self._group.take(self._limits.max_batch, self._limits.max_age, stop))
                try:
                    # 2. decode (bad bytes → dead letter)
                    asked, failures = self._decode(records)
                    for spec, requests in by_view(asked):
                        # 3. drop what is archived or marked  # 4. group by view
                        wanted = self._without_known(spec, requests, records, stop)
                        # 5. Retina
                        embedded, failed = self._embed(spec, wanted, records, stop)
                        # 6. history, then online
                        self._write(spec, embedded, records, stop)
                        failures += failed
                    # 7. failures: retry topic / dead letter + mark
                    self._until_done(partial(self._settle, failures), records, stop)
                    # 8. commit: all effects above are durable
                    self._until_done(partial(self._group.commit, records), records, stop)
                except Abandoned as why:
                    logger.warning("a batch of %d requests is read again: %s", len(records), why)
                    self._group.rewind(records)
        finally:
            self._group.leave()

    def _due(self, records: Sequence[Record]) -> list[Record]:
        """The records less the retries that are not due yet; their partitions rest until they are.

        A retry is due at most 60 s after the broker took it in, and the ones before it in its partition earlier than
        that: so none waits longer than 60 s in all, whatever stands before it.
        """
        due: list[Record] = []
        resting: set[tuple[str, int]] = set()
        for record in records:
            if (record.topic, record.partition) in resting:
                continue
            until = self._not_before(record)
            if until > self._clock.now():
                self._group.rest(record, until)
                resting.add((record.topic, record.partition))
            else:
                due.append(record)
        return due

    def _not_before(self, record: Record) -> int:
        if record.topic != self._topics.retry:
            return 0
        try:
            asked_for = EmbedRequest.decode(record.value).not_before
        except MalformedMessage:
            return 0
        return min(asked_for, record.timestamp * 1000 + round(MAX_RETRY_SECONDS * 1e6))

    def _decode(self, records: Iterable[Record]) -> tuple[list[Asked], list[Failure]]:
        """Well-formed requests, one a view and key (the earliest), and the failures of the rest."""
        first: dict[tuple[str, str], Asked] = {}
        failures: list[Failure] = []
        refreshed = False
        for record in records:
            request = None
            try:
                request = EmbedRequest.decode(record.value)
                if request.view not in self._directory.specs and not refreshed:
                    self._directory.refresh()  # it may have been applied a moment ago; once a batch
                    refreshed = True
                spec = self._directory.spec(request.view)
                request = replace(
                    request, key=canonical_key(spec, request.key), requested_at=self._event_time(request, record)
                )
            except (MalformedMessage, UnknownView, KeyRefused) as error:
                refusal = Failure(
                    record=record,
                    request=request,
                    marked=False,
                    reason=type(error).__name__,
                    detail=str(error),
                    remedy="never",
                )
                failures.append(refusal)
                continue
            asked = Asked(record=record, request=request, spec=spec)
            before = first.get((request.view, request.key))
            if before is None or _rank(request) < _rank(before.request):
                first[request.view, request.key] = asked
        return list(first.values()), failures

    def _event_time(self, request: EmbedRequest, record: Record) -> int:
        # Never in the future. The broker's time bounds it first, since that is the same in every replay: a replay then
        # writes the same row. It counts in milliseconds, so up to the end of that one.
        return min(request.requested_at, record.timestamp * 1000 + 999, self._clock.now())

    def _without_known(
        self, spec: EncoderSpec, asked: Sequence[Asked], records: Sequence[Record], stop: threading.Event
    ) -> list[Asked]:
        keys = [a.request.key for a in asked]
        archived = self._until_done(partial(self._archive.archived, spec, keys), records, stop, spec)
        marked = self._until_done(partial(self._marks.read, spec.view, keys), records, stop, spec)
        return [a for a in asked if a.request.key not in archived and a.request.key not in marked]

    def _embed(
        self, spec: EncoderSpec, asked: Sequence[Asked], records: Sequence[Record], stop: threading.Event
    ) -> tuple[EmbeddedBatch, list[Failure]]:
        """What Retina made of the requests of one view."""
        keys = [a.request.key for a in asked]
        nothing = EmbeddedBatch.empty(spec)
        if not keys:
            return nothing, []
        self._group.stay(0, stop)  # one slow batch a view: the time between two polls stays that of one
        encode = partial(self._retina.encode, spec.view, spec.fingerprint, keys, RETINA_SECONDS)
        try:
            encoded = self._until_done(encode, records, stop, spec)
            _check(spec, len(keys), encoded)
        except RetinaRefused as refusal:
            # Retina and KFC have not read the same registry yet, or one of them runs an old version. Stalling would hold
            # up every other view in these partitions; spending attempts would give up keys that nothing is wrong with.
            # So these go round through the retry topic until both agree: nothing is lost, and this is said each time.
            logger.error("%s: Retina refuses, %d requests wait in the retry topic: %s", spec.view, len(keys), refusal)
            self._directory.refresh()
            return nothing, [_failure(a, type(refusal).__name__, str(refusal), "later") for a in asked]
        failed: list[Failure] = []
        embedded: list[tuple[Asked, str]] = []
        for one, outcome in zip(asked, encoded.outcomes, strict=True):
            if not outcome.reason:
                embedded.append((one, outcome.content_hash.hex()))
            elif outcome.retryable and one.request.attempt + 1 < self._limits.max_attempts:
                failed.append(_failure(one, outcome.reason, outcome.detail, "again"))
            else:
                failed.append(_failure(one, outcome.reason, outcome.detail, "never"))
        batch = EmbeddedBatch(
            keys=tuple(one.request.key for one, _ in embedded),
            vectors=encoded.vectors,
            event_time=np.array([one.request.requested_at for one, _ in embedded], dtype=np.int64),
            content_hash=tuple(content_hash for _, content_hash in embedded),
            created_at=self._clock.now(),
        )
        return batch, failed

    def _write(
        self, spec: EncoderSpec, batch: EmbeddedBatch, records: Sequence[Record], stop: threading.Event
    ) -> None:
        # History first: nothing is ever served whose row is not in history. Each is repeated by itself, so that an
        # outage of the online store does not append to history again and again.
        if len(batch):
            self._until_done(partial(self._archive.append_history, spec, batch), records, stop, spec)
            self._until_done(partial(self._archive.write_online, spec, batch), records, stop, spec)
            logger.info("%s: %d embeddings archived", spec.view, len(batch))

    def _settle(self, failures: Sequence[Failure]) -> None:
        """Sends failures where they belong and waits until the broker has all; then marks keys that are given up.

        The mark comes last: a replay drops what is marked, so a dead letter must be there by then.
        """
        sent = [self._send(failure) for failure in failures]
        if sent:
            self._producer.flush(timeout=FLUSH_SECONDS)
        for future in sent:
            future.get(timeout=FLUSH_SECONDS)
        for failure in failures:
            if failure.remedy == "never" and failure.marked and failure.request:
                why = f"{failure.reason}: {failure.detail}"
                self._marks.mark(failure.request.view, {failure.request.key: why})

    def _send(self, failure: Failure) -> Any:
        request, now = failure.request, self._clock.now()
        if failure.remedy == "never" or request is None:
            letter = DeadLetter.of(
                failure.record, request, reason=failure.reason, detail=failure.detail, failed_at=now
            )
            logger.warning("given up: %s %r: %s: %s", letter.view, letter.key[:80], letter.reason, letter.detail)
            return self._producer.send(
                self._topics.dead_letters, letter.value, failure.record.key, letter.headers
            )
        if failure.remedy == "again":
            again = request.again(not_before=now + round(self._delay(request.attempt) * 1e6))
        else:
            again = replace(request, not_before=now + round(PROPAGATION_SECONDS * 1e6))
        return self._producer.send(self._topics.retry, again.encode(), again.partition_key)

    def _until_done(
        self,
        action: Callable[[], T],
        records: Sequence[Record],
        stop: threading.Event,
        spec: EncoderSpec | None = None,
    ) -> T:
        """Repeats an idempotent action until no outage is in its way.

        Raises:
            Abandoned: it was not done when `stop` came, when all partitions of the batch had gone to other workers, or
                when the encoder had changed in the registry.
        """
        tries = 0
        while True:
            try:
                return action()
            except OUTAGES as error:
                tries += 1
                seconds = min(MAX_STALL_SECONDS, 0.25 * 2 ** min(tries, 10))
                level = logging.WARNING if tries < 4 else logging.ERROR
                logger.log(level, "waiting %.1f s, then try %d: %r", seconds, tries + 1, error)
            self._group.wait(seconds, stop)
            if not self._group.still_has(records):
                raise Abandoned("its partitions went to other workers")
            if spec is not None and self._directory.specs.get(spec.view) != spec:
                raise Abandoned(f"{spec.view} has changed in the registry")
            if stop.is_set():
                raise Abandoned("told to stop during an outage")


def by_view(asked: Iterable[Asked]) -> list[tuple[EncoderSpec, list[Asked]]]:
    """The requests of each view together, in the order in which the views came up."""
    views: dict[str, tuple[EncoderSpec, list[Asked]]] = {}
    for one in asked:
        views.setdefault(one.spec.view, (one.spec, []))[1].append(one)
    return list(views.values())


def _rank(request: EmbedRequest) -> tuple[int, int]:
    # The earliest is the event; of equal ones (a retry that was sent twice) the one that has been tried more.
    return (request.requested_at, -request.attempt)


def _failure(asked: Asked, reason: str, detail: str, remedy: Literal["again", "later", "never"]) -> Failure:
    return Failure(
        record=asked.record, request=asked.request, marked=True, reason=reason, detail=detail, remedy=remedy
    )
