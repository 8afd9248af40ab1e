"""KFC's loop: requests in, archived embeddings out, at least once and with idempotent effects."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from encoders.traces import NO_TRACES, Traces
from feature_repo.directory import EncoderDirectory
from feature_repo.failures import FailureMarks
from materializer.abandonment import Abandonment
from materializer.announcements import Announcer, failed
from materializer.archive import Archive
from materializer.asked import Decoder, Identity, by_view, identity
from materializer.batch import Batch
from materializer.clock import Clock, SystemClock
from materializer.commits import Commits
from materializer.embedding import Embedder, Retina
from materializer.failures import MAX_ATTEMPTS, MAX_RETRY_SECONDS, Failures, Producer, retry_delay
from materializer.group import IDLE_SECONDS, Consumer, GroupMember, Record, Taken, partition_of
from materializer.messages import Announcement, EmbedRequest, MalformedMessage, Topics
from materializer.metrics import STAGES, WorkerMetrics
from materializer.needed import needed
from materializer.outage import Abandoned, Patience
from materializer.pace import Pace
from materializer.stages import Stage, Stages

logger = logging.getLogger(__name__)

WIDTHS = {"find": 2, "embed": 2, "append": 2, "write": 2}  # batches at a time: while one ends, the next has begun
WORKING_SECONDS = 0.02  # for which records are waited for while batches are in the stages: then they are committed
ROOM_SECONDS = 0.25  # for which a batch waits for room before this worker shows the group that it lives


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a worker takes at once.

    Attributes:
        max_batch: records of a batch, at most as many as Retina takes at once.
        max_age: seconds in which it fills, less the fuller it is.
        live_seconds: of Retina's time, for a batch: what fills while it is embedded goes with the next.
        bulk_seconds: the same of the bulk topic: so long may a look-up's miss wait for one.
        max_attempts: how often a key is tried.
    """

    max_batch: int = 512
    max_age: float = 0.2
    live_seconds: float = 2.0
    bulk_seconds: float = 0.5
    max_attempts: int = MAX_ATTEMPTS


class Worker:
    """One consumer that embeds what is asked for. Batches overlap: one is polled, two are looked up, two embedded,
    two appended to history, two written online and one told of.

    Args:
        consumer: a `KafkaConsumer` with `enable_auto_commit=False`; the worker subscribes and closes it.
        producer: a `KafkaProducer` with `acks="all"`; it is left open.
        retina, archive, marks, directory: the other side effects.
        topics: where requests come from and failures go to.
        clock: time of day and age of batches.
        delay: seconds before the next try, from the number of tries before.
        overlap: whether the stages have threads of their own.
        metrics: told what is done; of a registry of their own otherwise.
        traces: told what Retina is asked, in the traces of the look-ups that missed.
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
        overlap: bool = True,
        metrics: WorkerMetrics | None = None,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._clock = clock or SystemClock()
        self._metrics = metrics or WorkerMetrics()
        self._group = GroupMember(consumer, self._clock)
        self._failures = Failures(producer, marks, topics, self._clock, delay, self._metrics)
        self._announcer = Announcer(producer, topics)
        self._archive = archive
        self._marks = marks
        self._directory = directory
        self._topics = topics
        self._limits = limits or Limits()
        self._pace = Pace(self._clock)
        self._decoder = Decoder(directory, topics, self._clock)
        self._embedder = Embedder(
            retina, directory, self._clock, max_attempts=self._limits.max_attempts, pace=self._pace, traces=traces
        )
        self._overlap = overlap
        self._count = 0  # of batches
        self._in_flight: set[Identity] = set()  # of what is asked for in the stages
        self._abandonment = Abandonment()
        self._commits = Commits(self._group, self._abandonment)
        self._to_rewind: list[Taken] = []
        work = (self._find, self._embed, self._append, self._write, self._tell)
        self._stages = dict(zip(STAGES, work, strict=True))

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; then finishes the batches at hand, commits them and leaves the group.

        A batch that waits for an outage when `stop` comes is given back unfinished: the next worker reads it again.
        """
        poll_on = partial(self._group.wait, stop=stop)  # waiting so, this thread keeps its place in the group
        patient = partial(Patience, self._group, self._directory, self._metrics)
        patience = patient(stop.wait if self._overlap else poll_on, stop)
        commit = partial(self._commit, patient(poll_on, stop))
        line = (Stage(partial(self._through, name, patience), WIDTHS.get(name, 1)) for name in self._stages)
        self._group.join(self._topics.live, self._topics.retry, later=(self._topics.bulk,))
        try:
            with Stages(*line, overlap=self._overlap) as stages:
                try:
                    while not stop.is_set():
                        # 1. poll: look-ups' misses and retries, or else a little of a backfill
                        taken = self._take(stop, stages)
                        if taken.records:
                            # 2. decode (bad bytes → dead letter)
                            self._metrics.taken(len(taken))
                            batch = self._batch(taken)
                            # 3. drop what is archived or marked; 4. group by view      (`_find`)
                            # 5. Retina                                                 (`_embed`)
                            # 6. history: nothing is served whose row is not there      (`_append`)
                            # 7. online                                                 (`_write`)
                            # 8. failures: retry topic / dead letter + mark; announce   (`_tell`)
                            while not stages.offer(batch, ROOM_SECONDS):
                                self._group.stay(0, stop)
                                commit(stages)
                        # 9. commit, in order: every effect above is durable
                        commit(stages)
                        while self._to_rewind and not stop.is_set():
                            if not self._read_again(stages):
                                self._group.stay(ROOM_SECONDS, stop)
                                commit(stages)
                    while self._unfinished(stages):
                        self._group.stay(ROOM_SECONDS, stop)
                        commit(stages)
                except BaseException:
                    stop.set()  # else a stage would wait for the end of an outage, and this thread for the stage
                    raise
        finally:
            self._group.leave()

    def _take(self, stop: threading.Event, stages: Stages[Batch]) -> Taken:
        limits = self._limits
        live = min(limits.max_batch, self._pace.keys_in(limits.live_seconds))
        bulk = min(limits.max_batch, self._pace.keys_in(limits.bulk_seconds))
        seconds = WORKING_SECONDS if self._unfinished(stages) else IDLE_SECONDS
        taken = self._group.take(live, limits.max_age, stop, bulk, seconds)
        return taken.only(self._due(taken.records))

    def _batch(self, taken: Taken) -> Batch:
        asked, failures = self._decoder.decode(taken.records, self._in_flight)
        self._in_flight.update(identity(one.request) for one in asked)
        self._count += 1
        return Batch(number=self._count, taken=taken, asked=asked, failures=failures)

    def _commit(self, patience: Patience, stages: Stages[Batch]) -> None:
        """Goes on with committing what went through all stages, and keeps what was abandoned to be read again."""
        for batch in self._commits.go_on(stages.finished(), patience):
            if batch.abandoned:
                logger.warning(
                    "%d requests are read again, by this worker or another: %s", len(batch.taken), batch.abandoned
                )
                self._to_rewind.append(batch.taken)
            self._in_flight.difference_update(identity(one.request) for one in batch.asked)

    def _unfinished(self, stages: Stages[Batch]) -> bool:
        return bool(stages.inside or self._commits.waiting)

    def _read_again(self, stages: Stages[Batch]) -> bool:
        """Goes back to what was abandoned, if all that was taken after it has come out of the stages.

        Never while a batch still waits for room: it would go through, and commit what lies before it unfinished.
        """
        if self._unfinished(stages):
            return False
        self._group.rewind(self._to_rewind)
        self._to_rewind = []
        self._abandonment.end()
        return True

    def _through(self, name: str, patience: Patience, batch: Batch) -> None:
        """Has a stage work on a batch, unless that or one before it is abandoned: offsets are committed in order."""
        if self._abandonment.reaches(batch):
            return
        try:
            with self._metrics.stage(name):
                self._stages[name](batch, patience)
        except Abandoned as why:
            self._abandonment.begin(batch, str(why))

    # The stages

    def _find(self, batch: Batch, patience: Patience) -> None:
        for spec, requests in by_view(batch.asked):
            keys = [one.request.key for one in requests]
            versions = patience.until_done(partial(self._archive.versions, spec, keys), batch.taken, spec)
            marked = patience.until_done(partial(self._marks.read, spec.view, keys), batch.taken, spec)
            wanted = []
            for one in requests:
                key, version = one.request.key, versions.get(one.request.key)
                request = needed(one.request, one.record.timestamp * 1000, version)
                if request is not None and (request.refresh or key not in marked):
                    wanted.append(one if request is one.request else one._replace(request=request))
                elif request is not None:
                    batch.known.append(Announcement("failed", spec.view, key, request.requested_at, 0))
                elif version is not None and version.embedding_id is not None:
                    batch.known.append(
                        Announcement("embedded", spec.view, key, version.event_time, version.embedding_id)
                    )
            if wanted:
                batch.wanted.append((spec, wanted))

    def _embed(self, batch: Batch, patience: Patience) -> None:
        for spec, requests in batch.wanted:
            embedded, failures = self._embedder.embed(spec, requests, batch.taken, patience)
            if embedded is not None:
                batch.embedded.append((spec, embedded))
            batch.failures += failures

    def _append(self, batch: Batch, patience: Patience) -> None:
        # Repeated by itself, so that an outage of the online store does not append to history over and over.
        for spec, embedded in batch.embedded:
            patience.until_done(partial(self._archive.append_history, spec, embedded), batch.taken, spec)

    def _write(self, batch: Batch, patience: Patience) -> None:
        missed = {(one.request.view, one.request.key) for one in batch.asked if one.request.priority == "live"}
        for spec, embedded in batch.embedded:
            patience.until_done(partial(self._archive.write_online, spec, embedded), batch.taken, spec)
            logger.info("%s: %d embeddings archived", spec.view, len(embedded))
            ages = (self._clock.now() - embedded.event_time) / 1e6
            waited = [age for key, age in zip(embedded.keys, ages, strict=True) if (spec.view, key) in missed]
            self._metrics.archived(spec.view, len(embedded), waited)

    def _tell(self, batch: Batch, patience: Patience) -> None:
        patience.until_done(partial(self._failures.settle, batch.failures), batch.taken)
        told = [each for spec, embedded in batch.embedded for each in embedded.announcements(spec.view)]
        told += batch.known + failed(batch.failures)
        patience.until_done(partial(self._announcer.announce, told), batch.taken)

    def _due(self, records: Sequence[Record]) -> list[Record]:
        """The records less the retries that are not due yet; their partitions rest until they are.

        A retry is due at most 60 s after the broker took it in, and those before it in its partition came in earlier:
        so none waits for more than 60 s in all, whatever stands before it.
        """
        due: list[Record] = []
        resting = set()
        for record in records:
            if partition_of(record) in resting:
                continue
            until = self._not_before(record)
            if until > self._clock.now():
                self._group.rest(record, until)
                resting.add(partition_of(record))
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
