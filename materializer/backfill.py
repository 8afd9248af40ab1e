"""A backfill: asks for the embeddings of many keys at once, on a topic that waits for look-ups."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from kafka.errors import KafkaError

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from materializer.archive import ArchiveUnavailable
from materializer.backfill_input import Row
from materializer.clock import Clock
from materializer.failures import FLUSH_SECONDS, Producer
from materializer.messages import EmbedRequest, Topics

CHUNK = 500  # keys that the archive is asked for at once
MAX_UNACKNOWLEDGED = 4000  # requests: 200 MB of the longest keys, 2 MB of usual ones
CHECKPOINT_SECONDS = 5.0  # sent again at most after a kill, and by a pipe held back at most
REMEMBERED = 200_000  # digests of keys, about 40 MB with what Python keeps around them
EXAMPLES = 5
SHOWN_CHARACTERS = 200  # of a refused key
AHEAD_MICROSECONDS = 5 * 60 * 1_000_000  # a publisher's clock may be so much ahead; KFC takes such a time for now
FALL_BEHIND_SECONDS = 1.0  # what a rate may catch up on after a stall


class BackfillStopped(Exception):
    """Not all could be sent; the message says why. What was acknowledged before is remembered."""


class ArchivedKeys(Protocol):
    """What a backfill asks of the archive: `materializer.archive.Archive`."""

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that asks for nothing, and why."""

    row: int
    key: str
    why: str


@dataclass(kw_only=True, slots=True)
class Tally:
    """What became of the rows that were read.

    Attributes:
        read: rows; the sum of the others.
        sent: requests that the broker has acknowledged; in a dry run those that would be sent.
        archived: keys that have an embedding.
        duplicates: keys that were read a short while before; the first one counts.
        refused: rows without a valid key or time.
        examples: the first of them.
        position: how far in the input, in its own units.
    """

    read: int = 0
    sent: int = 0
    archived: int = 0
    duplicates: int = 0
    refused: int = 0
    examples: list[Refusal] = field(default_factory=list)
    position: int = 0


class Rate:
    """Holds back to so many a second, evenly.

    Args:
        wait: waits for so many seconds, or until it is told to stop.
    """

    def __init__(self, per_second: float, clock: Clock, wait: Callable[[float], Any]) -> None:
        self._seconds_each = 1 / per_second
        self._clock = clock
        self._wait = wait
        self._next = clock.monotonic()

    def hold(self) -> None:
        """Returns when one more is due."""
        now = self._clock.monotonic()
        self._next = max(self._next, now - FALL_BEHIND_SECONDS)
        if self._next > now:
            self._wait(self._next - now)
        self._next += self._seconds_each


class Backfill:
    """Sends the keys of one view to the bulk topic, each at least once; used by one thread.

    Args:
        producer: a `KafkaProducer` with `acks="all"`; it is left open. None sends nothing and saves nothing, but counts
            what would be sent.
        archive: knows what need not be asked for.
        clock: event time of rows that have none of their own, and age of a checkpoint.
        stop: ends the run after the row at hand.
        save: told the number of a row when all up to it is done: acknowledged, or nothing to send. May raise OSError.
        report: shown the tally every now and then.
        per_second: requests a second at most.
        refresh: asks for what is archived too: it is recomputed, as a new event, and served as it is until then.
    """

    def __init__(
        self,
        *,
        spec: EncoderSpec,
        topics: Topics,
        producer: Producer | None,
        archive: ArchivedKeys,
        clock: Clock,
        stop: threading.Event,
        save: Callable[[int], None] = lambda _: None,
        report: Callable[[Tally], None] = lambda _: None,
        per_second: float | None = None,
        refresh: bool = False,
    ) -> None:
        self._spec = spec
        self._topics = topics
        self._producer = producer
        self._archive = archive
        self._clock = clock
        self._stop = stop
        self._save = save
        self._report = report
        self._rate = Rate(per_second, clock, stop.wait) if per_second else None
        self._refresh = refresh
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._unacknowledged: list[Any] = []
        self._rows_since = 0  # the last checkpoint
        self._lost = False  # something that was sent may not be with the broker
        self._saved_at = clock.monotonic()
        self.tally = Tally()

    def run(self, rows: Iterable[Row | None]) -> Tally:
        """Sends until the rows end or `stop` is set; all that is counted as sent is acknowledged when this returns.

        Raises:
            BackfillStopped: Kafka or the online store did not answer, or `save` failed. What was acknowledged by
                then has been saved.
            InputError: a part of the input cannot be read; likewise.
        """
        done = 0
        try:
            for chunk in chunks(rows, CHUNK):
                # 1. canonical keys; rows without one, and keys read before, ask for nothing
                wanted = [(row, *self._checked(row)) for row in chunk]
                # 2. nor do archived ones
                archived = self._archived([request.key for _, request, _ in wanted if request])
                for row, request, why in wanted:
                    if self._stop.is_set():
                        return self.tally
                    # 3. send, at the rate that was asked for
                    self._settle(row, request, why, archived)
                    done = row.number
                    # 4. wait for the broker, and remember how far that was
                    self._checkpoint_if_due(done)
                if len(chunk) < CHUNK:  # a pipe that pauses
                    self._checkpoint(done)
                self._report(self.tally)
                if self._stop.is_set():
                    break
        finally:
            self._checkpoint(done)
            self._report(self.tally)
        return self.tally

    def _checked(self, row: Row) -> tuple[EmbedRequest | None, str]:
        """The request of a row, or none and why; no reason is given where the key was read before."""
        if row.problem:
            return None, row.problem
        now = self._clock.now()
        try:
            key = canonical_key(self._spec, row.key)
        except KeyRefused as error:
            return None, str(error)
        time = now if row.published_at is None else row.published_at
        if not 0 <= time <= now + AHEAD_MICROSECONDS:
            return None, "the publish time is before 1970" if time < 0 else "the publish time is in the future"
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        if digest in self._seen:
            return None, ""
        self._seen[digest] = None
        if len(self._seen) > REMEMBERED:  # forgetting one costs at most a request too many
            self._seen.popitem(last=False)
        request = EmbedRequest(
            view=self._spec.view, key=key, requested_at=min(time, now), priority="bulk", refresh=self._refresh
        )
        return request, ""

    def _archived(self, keys: Sequence[str]) -> set[str]:
        try:
            return self._archive.archived(self._spec, keys) if keys and not self._refresh else set()
        except ArchiveUnavailable as error:
            raise BackfillStopped(str(error)) from error

    def _settle(self, row: Row, request: EmbedRequest | None, why: str, archived: set[str]) -> None:
        if request is not None and request.key not in archived:
            self._send(request)
        elif request is not None:
            self.tally.archived += 1
        elif why:
            self.tally.refused += 1
            if len(self.tally.examples) < EXAMPLES:
                self.tally.examples.append(Refusal(row.number, row.key[:SHOWN_CHARACTERS], why))
        else:
            self.tally.duplicates += 1
        self.tally.read += 1
        self.tally.position = row.position

    def _send(self, request: EmbedRequest) -> None:
        if self._rate is not None:
            self._rate.hold()
        if self._producer is None:
            self.tally.sent += 1
            return
        with _kafka_errors():
            sent = self._producer.send(self._topics.bulk, request.encode(), request.partition_key)
        self._unacknowledged.append(sent)

    def _checkpoint_if_due(self, row: int) -> None:
        self._rows_since += 1
        if self._rows_since >= MAX_UNACKNOWLEDGED or self._clock.monotonic() - self._saved_at >= CHECKPOINT_SECONDS:
            self._checkpoint(row)

    def _checkpoint(self, row: int) -> None:
        if self._rows_since == 0 or self._lost:
            return
        self._lost = True  # unless the broker says otherwise
        unacknowledged, self._unacknowledged = self._unacknowledged, []
        if self._producer is not None and unacknowledged:
            with _kafka_errors():
                self._producer.flush(timeout=FLUSH_SECONDS)
                for future in unacknowledged:
                    future.get(timeout=FLUSH_SECONDS)
                    self.tally.sent += 1
        self._lost = False
        self._rows_since, self._saved_at = 0, self._clock.monotonic()
        if self._producer is not None:
            try:
                self._save(row)
            except OSError as error:
                raise BackfillStopped(f"how far it has come cannot be written down: {error}") from error
        self._report(self.tally)


@contextmanager
def _kafka_errors() -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise BackfillStopped(f"Kafka does not acknowledge the requests: {error!r}") from error


def chunks(rows: Iterable[Row | None], size: int) -> Iterator[list[Row]]:
    """Rows by `size`; fewer, or none, where a pipe pauses, and at the end."""
    chunk: list[Row] = []
    for row in rows:
        if row is not None:
            chunk.append(row)
        if row is None or len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
