"""What becomes of requests without an embedding: another try later, or a dead letter and a mark."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from feature_repo.failures import FailureMarks
from materializer.clock import Clock
from materializer.dead_letter import DeadLetter
from materializer.group import Record
from materializer.messages import EmbedRequest, Topics
from materializer.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
MAX_RETRY_SECONDS = 60.0  # also bounds how long a due retry stands behind one that is not: `Worker._due`
PROPAGATION_SECONDS = 5.0  # > two readings of the registry, 2 s each: by then all have read the same
FLUSH_SECONDS = 60.0  # > the producer's delivery time-out

Remedy = Literal["again", "later", "never"]


class Producer(Protocol):
    """What is used of `KafkaProducer`."""

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: list[tuple[str, bytes]] | None = None
    ) -> Any: ...

    def flush(self, timeout: float) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A request that got no embedding.

    Attributes:
        record: as it was consumed.
        request: what it asks for; None where it is no request.
        canonical: whether view and key are known to be good, so that look-ups can be told of the failure.
        reason, detail: name and message of the error.
        remedy: `again` spends an attempt; `later` spends none, since the fault is not the key's; `never` gives up.
    """

    record: Record
    request: EmbedRequest | None
    canonical: bool
    reason: str
    detail: str
    remedy: Remedy

    @property
    def marks(self) -> bool:
        """Whether look-ups are to be told: not of a refresh, whose key has an embedding or is asked for when missed."""
        return self.remedy == "never" and self.canonical and self.request is not None and not self.request.refresh

    @property
    def gives_up(self) -> bool:
        """Whether it goes to the dead letters; where it is no request, there is nothing to try again."""
        return self.remedy == "never" or self.request is None


def retry_delay(attempt: int) -> float:
    """Seconds until the next try after `attempt` tries before: doubling from 1 s, at most 60 s, less up to half."""
    # The jitter keeps the keys of a host that was down for a moment from coming back to it all at once.
    return min(MAX_RETRY_SECONDS, 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


class Failures:
    """Sends failures where they belong.

    Args:
        delay: seconds before the next try, from the number of tries before.
    """

    def __init__(
        self,
        producer: Producer,
        marks: FailureMarks,
        topics: Topics,
        clock: Clock,
        delay: Callable[[int], float],
        metrics: WorkerMetrics,
    ) -> None:
        self._producer = producer
        self._marks = marks
        self._topics = topics
        self._clock = clock
        self._delay = delay
        self._metrics = metrics

    def settle(self, failures: Sequence[Failure]) -> None:
        """Sends all, waits until the broker has them, then marks the keys that are given up.

        The marks come last: a replay drops what is marked, so its dead letter must be there by then. Repeating it after
        an error sends some twice: `read_dead_letters` answers them once, and a second retry finds its key archived.

        Raises:
            KafkaError: not all were acknowledged.
            StoreUnavailable: the keys could not be marked.
        """
        sent = [self._send(failure) for failure in failures]
        if sent:
            self._producer.flush(timeout=FLUSH_SECONDS)
        for future in sent:
            future.get(timeout=FLUSH_SECONDS)
        marks: dict[str, dict[str, str]] = {}
        for failure in failures:
            if failure.marks and failure.request:
                why = f"{failure.reason}: {failure.detail}"
                marks.setdefault(failure.request.view, {})[failure.request.key] = why
        for view, reasons in marks.items():
            self._marks.mark(view, reasons)
        for failure in failures:
            count = self._metrics.gave_up if failure.gives_up else self._metrics.tried_again
            count(failure.reason)

    def _send(self, failure: Failure) -> Any:
        request, now = failure.request, self._clock.now()
        if request is None or failure.gives_up:
            letter = DeadLetter.of(failure.record, request, reason=failure.reason, detail=failure.detail, failed_at=now)
            logger.warning("given up: %r %r: %s: %r", letter.view, letter.key[:80], letter.reason, letter.detail)
            return self._producer.send(self._topics.dead_letters, letter.value, failure.record.key, letter.headers)
        if failure.remedy == "again":
            logger.info("again: %s %r: %s: %r", request.view, request.key[:80], failure.reason, failure.detail)
            request = request.again(not_before=now + round(self._delay(request.attempt) * 1e6))
        else:
            request = replace(request, not_before=now + round(PROPAGATION_SECONDS * 1e6))
        return self._producer.send(self._topics.retry, request.encode(), request.partition_key)
