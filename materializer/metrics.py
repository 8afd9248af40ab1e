"""What KFC tells Prometheus: `docs/metrics.md` lists it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from materializer.archive import ArchivePart

Cause = ArchivePart | Literal["kafka", "retina", "busy_retina", "system"]

TOPICS = ("live", "bulk", "retry")
STAGES = ("find", "embed", "append", "write", "tell")
CAUSES: tuple[Cause, ...] = ("history", "online_store", "registry", "kafka", "retina", "busy_retina")
HIT_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 21600.0)
STAGE_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0)
SIZES = (1, 4, 16, 64, 128, 256, 384, 512)
UNKNOWN = float("nan")  # which draws no line, where 0 would say that all is well


class Stall:
    """What one thread waits for, if anything."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self.cause: Cause | None = None

    def on(self, cause: Cause | None) -> None:
        """From now on it waits for that; None for nothing."""
        if cause != self.cause:
            if self.cause:
                self._gauge.labels(self.cause).dec()
            if cause:
                self._gauge.labels(cause).inc()
            self.cause = cause


class WorkerMetrics:
    """The metrics of one worker. Safe to share between threads.

    Args:
        registry: where they are found; a fresh one otherwise.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._lag = Gauge("kfc_lag_requests", "Requests not committed.", ["topic"], registry=registry)
        self._oldest = Gauge(
            "kfc_oldest_waiting_seconds", "Age of the oldest request not committed.", ["topic"], registry=registry
        )
        self._miss_to_hit = Histogram(
            "kfc_miss_to_hit_seconds", "From miss to hit.", ["view"], registry=registry, buckets=HIT_SECONDS
        )
        self._batch = Histogram("kfc_batch_requests", "Requests of a batch.", registry=registry, buckets=SIZES)
        self._stage = Histogram(
            "kfc_stage_seconds", "Time of a batch in a stage.", ["stage"], registry=registry, buckets=STAGE_SECONDS
        )
        self._archived = Counter("kfc_archived", "Embeddings archived.", ["view"], registry=registry)
        self._retries = Counter("kfc_retries", "Requests sent to the retry topic.", ["reason"], registry=registry)
        self._dead_letters = Counter("kfc_dead_letters", "Requests given up.", ["reason"], registry=registry)
        self._stalled = Gauge("kfc_stalled", "Threads that wait for the end of an outage.", ["on"], registry=registry)
        for topic in TOPICS:
            self.backlog(topic, UNKNOWN, UNKNOWN)
        for stage in STAGES:
            self._stage.labels(stage)
        for cause in CAUSES:
            self._stalled.labels(cause)

    def taken(self, requests: int) -> None:
        """A batch of so many requests begins."""
        self._batch.observe(requests)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a batch in a stage, however it ends; outages that it waits for are part of it."""
        with self._stage.labels(name).time():
            yield

    def archived(self, view: str, embeddings: int, waited: Sequence[float]) -> None:
        """So many embeddings can be looked up; for those that look-ups missed, the seconds since they did."""
        self._archived.labels(view).inc(embeddings)
        if waited:
            miss_to_hit = self._miss_to_hit.labels(view)
            for seconds in waited:
                miss_to_hit.observe(seconds)

    def tried_again(self, reason: str) -> None:
        """The retry topic has a request."""
        self._retries.labels(reason).inc()

    def gave_up(self, reason: str) -> None:
        """The dead-letter topic has a request."""
        self._dead_letters.labels(reason).inc()

    def backlog(self, topic: str, requests: float, oldest: float) -> None:
        """So many requests of a topic wait, the oldest for so many seconds; NaN where that is not known."""
        self._lag.labels(topic).set(requests)
        self._oldest.labels(topic).set(oldest)

    @contextmanager
    def stall(self) -> Iterator[Stall]:
        """Tells of a thread's waiting in an outage, which ends with the block."""
        stall = Stall(self._stalled)
        try:
            yield stall
        finally:
            stall.on(None)
