"""Dead letters on the page: how many by reason, the newest ones, and their retry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from feast import FeatureStore
from kafka import TopicPartition

from embark.resending import resend
from feature_repo.failures import FailureMarks
from materializer.dead_letter import DeadLetter, read_dead_letters
from materializer.dead_letter_actions import count_by_view_and_reason, plan_retry, select
from materializer.process import topic_reader, topics_of

SHOWN = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """One dead letter, as it is shown.

    Attributes:
        failed_at: microseconds since 1970.
        status: of its key now; empty where it holds no request of a registered view.
    """

    position: str
    view: str
    key: str
    reason: str
    detail: str
    failed_at: int
    status: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Letters:
    """The dead letters of a project.

    Attributes:
        total: how many there are.
        counts: (view, reason, letters), most first.
        newest: newest first, at most `SHOWN`.
    """

    total: int
    counts: Sequence[tuple[str, str, int]]
    newest: Sequence[Letter]

    def with_statuses(self, statuses: dict[tuple[str, str], str]) -> "Letters":
        """The same, with the status of each (view, key) that is known."""
        newest = [replace(each, status=statuses.get((each.view, each.key), "")) for each in self.newest]
        return replace(self, newest=newest)


class LetterBox:
    """Reads the dead-letter topic, all of it only where something has changed. For one thread.

    Args:
        store: a feature store of its own.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._before: tuple[dict[Any, int], dict[Any, int]] | None = None
        self._letters: Sequence[DeadLetter] = ()

    def read(self) -> Letters:
        """Raises:
        KafkaUnavailable: Kafka does not answer.
        NothingApplied: nothing has been registered in this project.
        """
        servers, topics = topics_of(self._store)
        with topic_reader(servers) as consumer:
            partitions = [
                TopicPartition(topics.dead_letters, p) for p in consumer.partitions_for_topic(topics.dead_letters) or ()
            ]
            if not partitions:
                self._letters = ()
            else:
                ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
                if ends != self._before:
                    self._letters = read_dead_letters(consumer, topics)
                    self._before = ends
        return shown(self._letters)

    def retry(
        self,
        marks: Callable[[], FailureMarks],
        *,
        positions: Sequence[str] = (),
        view: str | None = None,
        reason: str | None = None,
    ) -> int:
        """Sends the requests of letters again; how many requests that were.

        Args:
            marks: answers the failure marks; asked only where there is something to send.

        Raises:
            NoSuchLetter: a position is that of no letter.
            RetryStopped, StoreUnavailable, KafkaUnavailable: not all could be sent.
        """
        servers, topics = topics_of(self._store)
        with topic_reader(servers) as consumer:
            letters = read_dead_letters(consumer, topics)
        retries, _ = plan_retry(select(letters, view=view, reason=reason, positions=positions), topics)
        if retries:
            resend(servers, marks(), retries)
        return len(retries)


def shown(letters: Sequence[DeadLetter]) -> Letters:
    """What the page tells of dead letters, given oldest first."""
    newest = [
        Letter(
            position=each.position,
            view=each.view,
            key=each.key,
            reason=each.reason,
            detail=each.detail,
            failed_at=each.failed_at,
        )
        for each in reversed(letters[-SHOWN:])
    ]
    return Letters(total=len(letters), counts=count_by_view_and_reason(letters), newest=newest)
