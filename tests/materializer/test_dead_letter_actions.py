"""Picking dead letters, sending their requests again, planning what is removed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError

from feature_repo.failures import MemoryFailureMarks
from feature_repo.session import StoreUnavailable
from materializer import dead_letter_actions
from materializer.dead_letter import DeadLetter
from materializer.dead_letter_actions import (
    NoSuchLetter,
    Purge,
    RetryStopped,
    count_by_view_and_reason,
    plan_purge,
    plan_retry,
    purge,
    select,
    send_again,
)
from materializer.messages import EmbedRequest, Topics
from tests.materializer.fakes import START, FakeClock, FakeKafka, FakeProducer

TOPICS = Topics(live="requests")
FAILED = EmbedRequest(view="tiny__v1", key="a", requested_at=START, attempt=4, not_before=START + 7)


def letter(offset: int, request: EmbedRequest = FAILED, *, topic: str = TOPICS.retry, **changed: Any) -> DeadLetter:
    value = request.encode()
    return replace(
        DeadLetter(
            reason="NotFound",
            detail="404",
            view=request.view,
            key=request.key,
            attempt=request.attempt,
            requested_at=request.requested_at,
            topic=topic,
            partition=3,
            offset=offset,
            failed_at=START + offset,
            value=value,
            size=len(value),
        ),
        **changed,
    )


LETTERS = [
    letter(0),
    letter(1, replace(FAILED, view="pic__v1"), reason="Timeout"),
    letter(2, replace(FAILED, key="b"), reason="Timeout"),
]


@pytest.mark.parametrize(
    ("chosen", "offsets"),
    [
        ({}, [0, 1, 2]),
        ({"view": "tiny__v1"}, [0, 2]),
        ({"reason": "Timeout"}, [1, 2]),
        ({"view": "tiny__v1", "reason": "Timeout"}, [2]),
        ({"view": "none__v1"}, []),
        ({"positions": ["requests.retry:3:2", "requests.retry:3:0"]}, [0, 2]),
        ({"positions": ["requests.retry:3:2"], "view": "pic__v1"}, []),
    ],
)
def test_letters_are_chosen_by_view_reason_and_position(chosen: dict[str, Any], offsets: list[int]) -> None:
    assert [each.offset for each in select(LETTERS, **chosen)] == offsets


def test_a_position_without_a_letter_is_named() -> None:
    with pytest.raises(NoSuchLetter, match=r"no dead letter at nowhere:0:0: .*embark dead-letters list"):
        select(LETTERS, positions=["requests.retry:3:2", "nowhere:0:0"])


def test_letters_are_counted_by_view_and_reason_most_first() -> None:
    assert count_by_view_and_reason([*LETTERS, letter(3)]) == [
        ("tiny__v1", "NotFound", 2),
        ("pic__v1", "Timeout", 1),
        ("tiny__v1", "Timeout", 1),
    ]


def test_a_request_goes_out_again_as_it_was_first_asked_for() -> None:
    ((retry,), refused) = plan_retry([letter(0)], TOPICS)
    assert retry.request == EmbedRequest(view="tiny__v1", key="a", requested_at=START)
    assert (retry.topic, refused) == (TOPICS.live, [])


def test_key_and_time_are_those_that_kfc_made_of_the_message() -> None:
    raw = replace(FAILED, key=" a ", requested_at=START + 10**15)
    ((retry,), _) = plan_retry([letter(0, raw, key="a", requested_at=START)], TOPICS)
    assert (retry.request.key, retry.request.requested_at) == ("a", START)


def test_all_letters_of_a_key_become_one_request_of_the_first_time() -> None:
    letters = [letter(0, replace(FAILED, requested_at=START + 9)), letter(1), letter(2, replace(FAILED, key="b"))]
    retries, _ = plan_retry(letters, TOPICS)
    assert [(each.request.key, each.request.requested_at) for each in retries] == [("a", START), ("b", START)]
    assert [[one.offset for one in each.letters] for each in retries] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("letters", "topic"),
    [
        ([letter(0, replace(FAILED, priority="bulk"))], TOPICS.bulk),
        ([letter(0, topic=TOPICS.bulk)], TOPICS.bulk),
        ([letter(0, replace(FAILED, priority="bulk")), letter(1)], TOPICS.live),
    ],
)
def test_a_backfills_request_waits_for_look_ups_again_unless_one_wants_it_too(
    letters: list[DeadLetter], topic: str
) -> None:
    ((retry,), _) = plan_retry(letters, TOPICS)
    assert retry.topic == topic
    assert retry.request.priority == ("bulk" if topic == TOPICS.bulk else "live")


def test_what_is_no_request_is_refused_and_says_why() -> None:
    bad = letter(0, value=b"{}", size=2, view="", key="", requested_at=0)
    cut = letter(1, value=b'{"view": "ti', size=10**7)
    retries, refused = plan_retry([bad, cut, letter(2)], TOPICS)
    assert [each.letters[0].offset for each in retries] == [2]
    assert [(each.letter.offset, each.why) for each in refused] == [
        (0, "it holds no request: Object missing required field `view`"),
        (1, "only 12 of the 10000000 bytes of its message were kept"),
    ]


def retries_of(count: int) -> Sequence[dead_letter_actions.Retry]:
    retries, _ = plan_retry([letter(n, replace(FAILED, key=f"k{n}")) for n in range(count)], TOPICS)
    return retries


def test_marks_are_cleared_before_the_requests_go_out() -> None:
    kafka = FakeKafka(FakeClock())
    marks = MemoryFailureMarks({("tiny__v1", "k0"): "404", ("tiny__v1", "other"): "404"})

    class Looking(FakeProducer):
        def flush(self, timeout: float) -> None:
            assert list(marks.marks) == [("tiny__v1", "other")]
            super().flush(timeout)

    acknowledged: list[int] = []
    send_again(retries_of(2), producer=Looking(kafka), marks=marks, acknowledged=acknowledged.append)
    sent = [EmbedRequest.decode(record.value) for record in kafka.records(TOPICS.live)]
    assert [request.key for request in sent] == ["k0", "k1"]
    assert [record.key for record in kafka.records(TOPICS.live)] == [request.partition_key for request in sent]
    assert acknowledged == [2]


def test_a_broker_that_fails_is_told_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_actions, "CHUNK", 2)
    kafka = FakeKafka(FakeClock())
    acknowledged: list[int] = []

    class Failing(FakeProducer):
        def flush(self, timeout: float) -> None:
            if kafka.records(TOPICS.live):
                self.errors.append(KafkaTimeoutError("too late"))
            super().flush(timeout)

    with pytest.raises(RetryStopped, match=r"has taken 2 of 5 requests, and perhaps some of the next 2: .*too late"):
        send_again(
            retries_of(5), producer=Failing(kafka), marks=MemoryFailureMarks({}), acknowledged=acknowledged.append
        )
    assert acknowledged == [2]


def test_where_a_mark_cannot_be_cleared_nothing_is_sent() -> None:
    class Away(MemoryFailureMarks):
        def clear(self, view: str, keys: Sequence[str]) -> None:
            raise StoreUnavailable("Cassandra does not answer")

    kafka = FakeKafka(FakeClock())
    with pytest.raises(StoreUnavailable):
        send_again(retries_of(1), producer=FakeProducer(kafka), marks=Away({}))
    assert kafka.records(TOPICS.live) == []


@dataclass
class Offsets:
    """What a consumer knows of the dead-letter topic."""

    first: dict[int, int]
    end: dict[int, int]
    by_time: dict[int, int] = field(default_factory=dict)  # partition → offset; what is missing came in before
    asked: list[int] = field(default_factory=list)

    def partitions_for_topic(self, topic: str) -> set[int]:
        assert topic == TOPICS.dead_letters
        return set(self.first)

    def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: self.first[each.partition] for each in partitions}

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: self.end[each.partition] for each in partitions}

    def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        self.asked += times.values()
        return {each: Found(self.by_time[each.partition]) if each.partition in self.by_time else None for each in times}


@dataclass
class Found:
    offset: int


def dead(partition: int = 0) -> TopicPartition:
    return TopicPartition(TOPICS.dead_letters, partition)


def test_all_means_all_that_are_there_now() -> None:
    plan = plan_purge(Offsets({0: 5, 1: 2}, {0: 9, 1: 2}), TOPICS, None)
    assert plan == Purge(before={dead(0): 9}, messages=4)


def test_before_a_time_means_what_came_in_earlier() -> None:
    consumer = Offsets({0: 5, 1: 0, 2: 0}, {0: 9, 1: 3, 2: 4}, by_time={0: 7, 2: 0})
    plan = plan_purge(consumer, TOPICS, datetime(2026, 1, 1, tzinfo=UTC))
    assert plan == Purge(before={dead(0): 7, dead(1): 3}, messages=5)
    assert set(consumer.asked) == {1_767_225_600_000}
    early = Offsets({0: 0}, {0: 1}, by_time={0: 0})
    assert plan_purge(early, TOPICS, datetime(1900, 1, 1, tzinfo=UTC)).messages == 0
    assert early.asked == [0]


def test_a_topic_that_is_not_there_has_nothing_to_remove() -> None:
    assert plan_purge(Offsets({}, {}), TOPICS, None) == Purge(before={}, messages=0)


def test_what_was_planned_is_removed_and_nothing_is_asked_where_there_is_none() -> None:
    class Admin:
        removed: dict[TopicPartition, int] | None = None

        def delete_records(self, records: dict[TopicPartition, int]) -> None:
            self.removed = records

    admin = Admin()
    purge(admin, Purge(before={}, messages=0))
    assert admin.removed is None
    purge(admin, Purge(before={dead(): 3}, messages=3))
    assert admin.removed == {dead(): 3}
