import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.errors import CommitFailedError, KafkaConnectionError, KafkaTimeoutError

from encoders.client import Outcome, RetinaAway, RetinaBusy, RetinaRefused, content_hash, memory_vector
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.failures import MARK_SECONDS, MemoryFailureMarks
from materializer.archive import ArchiveUnavailable, EmbeddedBatch, MemoryArchive
from materializer.dead_letter import DeadLetter
from materializer.deletions import AFTER, Deletions
from materializer.failures import MAX_ATTEMPTS, retry_delay
from materializer.group import MAX_BYTES, GroupMember
from materializer.messages import Announcement, EmbedRequest, Topics, decode_announcements
from materializer.metrics import WorkerMetrics
from materializer.worker import Limits, Worker
from tests.materializer.fakes import START, FakeClock, FakeConsumer, FakeKafka, FakeProducer, ScriptedRetina

TEXT = EncoderSpec(
    name="tiny", version="v1", modality="text", dim=4, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
IMAGE = EncoderSpec(
    name="pic", version="v1", modality="image", dim=8, network="torchvision:x", weights="seeded:0", pinned="seeded:0"
)
TOPICS = Topics(live="requests")
TIMEOUT = Outcome(reason="Timeout", detail="slow", retryable=True)
NOT_FOUND = Outcome(reason="NotFound", detail="404")
EMBEDDED = Outcome(content_hash=b"\x01" * 16)


class Crash(Exception):
    """The process dies here."""


@dataclass(frozen=True)
class BreakingArchive(MemoryArchive):
    """A `MemoryArchive` whose writes fail as told; each error befalls one call, after the write before it."""

    history_errors: list[Exception] = field(default_factory=list)
    online_errors: list[Exception] = field(default_factory=list)

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        if self.history_errors:
            raise self.history_errors.pop(0)
        super().append_history(spec, batch)

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        if self.online_errors:
            raise self.online_errors.pop(0)
        super().write_online(spec, batch)


class Kitchen:
    """A worker and all it touches."""

    def __init__(self, *specs: EncoderSpec, metrics: WorkerMetrics | None = None) -> None:
        self.metrics = metrics
        self.specs = {spec.view: spec for spec in specs or (TEXT, IMAGE)}
        self.clock = FakeClock()
        self.kafka = FakeKafka(self.clock)
        self.producer = FakeProducer(self.kafka)
        self.retina = ScriptedRetina(self.specs)
        self.archive = BreakingArchive()
        self.marks = MemoryFailureMarks({})
        self.directory = EncoderDirectory(lambda: dict(self.specs))
        self.stop = threading.Event()
        self.consumer = FakeConsumer(self.kafka, self.stop)

    def ask(
        self, *keys: str, view: str = TEXT.view, topic: str = TOPICS.live, partition: int = 0, **fields: Any
    ) -> None:
        for key in keys:
            fields = {"requested_at": START - 1_000_000} | fields
            request = EmbedRequest(view=view, key=key, **fields)
            self.kafka.append(topic, request.encode(), request.partition_key, partition=partition)

    def run(self, limits: Limits | None = None, overlap: bool = False) -> None:
        """One process, until all is read. Time passes where its thread waits; with `overlap`, wherever one polls."""
        self.stop.clear()
        worker = Worker(
            consumer=self.consumer,
            producer=self.producer,
            retina=self.retina,
            archive=self.archive,
            marks=self.marks,
            directory=self.directory,
            topics=TOPICS,
            clock=self.clock,
            limits=limits,
            delay=lambda attempt: float(2**attempt),
            overlap=overlap,
            metrics=self.metrics,
        )
        worker.run(self.stop)

    def run_again(self) -> None:
        """The next process, after the first has died."""
        self.consumer = FakeConsumer(self.kafka, self.stop)
        self.run()

    @property
    def keys(self) -> set[str]:
        return {key for _, key in self.archive.rows}

    @property
    def history(self) -> list[str]:
        return [key for table in self.archive.history for key in table.column(0).to_pylist()]

    @property
    def retries(self) -> list[EmbedRequest]:
        return [EmbedRequest.decode(record.value) for record in self.kafka.records(TOPICS.retry)]

    @property
    def dead(self) -> list[DeadLetter]:
        return [DeadLetter.from_record(record) for record in self.kafka.records(TOPICS.dead_letters)]

    @property
    def announced(self) -> list[Announcement]:
        records = self.kafka.records(TOPICS.embedded)
        return [each for record in records for each in decode_announcements(record.value)]

    @property
    def lag(self) -> int:
        return self.kafka.lag([TOPICS.live, TOPICS.bulk, TOPICS.retry])


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


def test_what_is_asked_for_is_in_history_and_online_and_committed(kitchen: Kitchen) -> None:
    kitchen.ask("red shoes", "blue hat", requested_at=START - 7)
    kitchen.ask("https://Example.org/a.jpg", view=IMAGE.view)
    kitchen.run()
    assert kitchen.keys == {"red shoes", "blue hat", "https://example.org/a.jpg"}
    assert kitchen.archive.rows[TEXT.view, "red shoes"][0] == START - 7
    assert sorted(kitchen.history) == sorted(kitchen.keys)
    assert kitchen.lag == 0
    assert kitchen.consumer.closed
    text = next(table for table in kitchen.archive.history if table["view"][0].as_py() == TEXT.view).to_pylist()
    assert all(row["content_hash"] == content_hash(row["text"].encode()).hex() for row in text)
    assert all(row["created_timestamp"] >= row["event_timestamp"] for row in text)


def test_vectors_go_to_their_keys_where_others_fail(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes = {"b": [NOT_FOUND], "d": [TIMEOUT, EMBEDDED]}
    kitchen.ask("a", "b", "cc", "d", "eee")
    kitchen.run()
    assert kitchen.keys == {"a", "cc", "d", "eee"}
    for (_, key), (_, vector) in kitchen.archive.rows.items():
        assert np.array_equal(vector, memory_vector(key, TEXT.dim))


def test_requests_are_encoded_a_view_at_a_time_in_batches(kitchen: Kitchen) -> None:
    kitchen.ask(*"abcdef")
    kitchen.ask("http://h/1", "http://h/2", view=IMAGE.view, partition=1)
    kitchen.run(Limits(max_batch=5))
    assert kitchen.retina.calls == [list("abcde"), ["f"], ["http://h/1", "http://h/2"]]


def test_a_flood_of_long_messages_is_taken_in_short_batches(kitchen: Kitchen) -> None:
    half = b"x" * (MAX_BYTES // 2)
    for value in (half, half, half):
        kitchen.kafka.append(TOPICS.live, value)
        kitchen.kafka.append(TOPICS.live, b"short")
    poll = kitchen.consumer.poll
    kitchen.consumer.poll = lambda **given: poll(**given | {"max_records": 1})  # type: ignore[method-assign]
    kitchen.run()
    assert [sum(offsets.values()) for offsets in kitchen.consumer.commits] == [3, 6]
    assert len(kitchen.dead) == 6
    assert kitchen.lag == 0


@pytest.mark.parametrize(("keys", "seconds"), [("a", 0.15), ("ab", 0.1), ("abc", 0.05), ("abcd", 0.0)])
def test_a_batch_waits_for_others_less_the_fuller_it_is(kitchen: Kitchen, keys: str, seconds: float) -> None:
    group = GroupMember(kitchen.consumer, kitchen.clock)
    group.join(TOPICS.live)
    kitchen.ask(*keys)
    began = kitchen.clock.monotonic()
    assert len(group.take(4, 0.2, threading.Event())) == len(keys)
    assert kitchen.clock.monotonic() - began == pytest.approx(seconds, abs=0.002)


@pytest.mark.parametrize("value", [b"\xff", b"{}", None, b'{"view": 1}'])
def test_a_poison_message_becomes_a_dead_letter_and_the_rest_goes_on(kitchen: Kitchen, value: bytes | None) -> None:
    kitchen.ask("before")
    kitchen.kafka.append(TOPICS.live, value, b"its key")
    kitchen.ask("after")
    kitchen.run()
    assert kitchen.keys == {"before", "after"}
    (letter,) = kitchen.dead
    assert letter.reason == "MalformedMessage"
    assert letter.value == (value or b"")
    assert (letter.topic, letter.partition, letter.offset) == (TOPICS.live, 0, 1)
    assert kitchen.kafka.records(TOPICS.dead_letters)[0].key == b"its key"
    assert kitchen.marks.marks == {}
    assert kitchen.lag == 0


def test_a_view_applied_a_moment_ago_is_known_and_an_unknown_one_is_a_dead_letter(kitchen: Kitchen) -> None:
    late = replace(TEXT, version="v2")
    kitchen.specs[late.view] = late
    kitchen.retina.specs[late.view] = late
    kitchen.ask("a", view=late.view)
    kitchen.ask("b", view="never__v1")
    kitchen.run()
    assert set(kitchen.archive.rows) == {(late.view, "a")}
    (letter,) = kitchen.dead
    assert (letter.reason, letter.view, letter.key) == ("UnknownView", "never__v1", "b")
    assert "tiny__v2" in letter.detail


def test_a_key_that_names_no_input_is_a_dead_letter(kitchen: Kitchen) -> None:
    kitchen.ask("ftp://h/a", view=IMAGE.view)
    kitchen.run()
    assert [(letter.reason, letter.key) for letter in kitchen.dead] == [("KeyRefused", "ftp://h/a")]
    assert kitchen.retina.calls == []


@pytest.mark.parametrize("ahead", [1, 60_000_000, 86_400_000_000, 2**62])
def test_an_event_is_never_in_the_future(kitchen: Kitchen, ahead: int) -> None:
    kitchen.ask("a", requested_at=min(START + ahead, 2**63 - 1))
    kitchen.run()
    event_time = kitchen.archive.rows[TEXT.view, "a"][0]
    assert START <= event_time <= START + 999  # of the millisecond in which the broker took it in


def test_a_replay_gives_a_request_from_the_future_the_same_event_time(kitchen: Kitchen) -> None:
    kitchen.ask("a", requested_at=START + 10**12)
    kitchen.archive.online_errors.append(Crash())
    with pytest.raises(Crash):
        kitchen.run()
    kitchen.clock.seconds += 100
    kitchen.run_again()
    first, second = (table["event_timestamp"][0] for table in kitchen.archive.history)
    assert first == second


def test_of_several_requests_for_a_key_the_earliest_is_the_event(kitchen: Kitchen) -> None:
    kitchen.ask("a", requested_at=START - 5)
    kitchen.ask("a", requested_at=START - 9)
    kitchen.ask(" a ", requested_at=START - 7)
    kitchen.run()
    assert kitchen.retina.calls == [["a"]]
    assert kitchen.archive.rows[TEXT.view, "a"][0] == START - 9
    assert kitchen.lag == 0


def test_what_is_archived_or_marked_is_not_encoded_again(kitchen: Kitchen) -> None:
    kitchen.marks.mark(TEXT.view, {"marked": "NotFound: 404"})
    kitchen.ask("archived")
    kitchen.run()
    kitchen.ask("archived", "marked", "new")
    kitchen.run_again()
    assert kitchen.retina.calls == [["archived"], ["new"]]
    assert kitchen.lag == 0


def test_a_permanent_failure_is_a_dead_letter_and_a_mark(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes["gone"] = [NOT_FOUND]
    kitchen.ask("gone", "there")
    kitchen.run()
    assert kitchen.keys == {"there"}
    assert kitchen.marks.marks == {(TEXT.view, "gone"): "NotFound: 404"}
    (letter,) = kitchen.dead
    assert (letter.reason, letter.detail, letter.view, letter.key) == ("NotFound", "404", TEXT.view, "gone")
    assert letter.value == kitchen.kafka.records(TOPICS.live)[0].value
    assert kitchen.retries == []


def test_what_is_online_or_given_up_is_announced_before_it_is_committed(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes = {"gone": [NOT_FOUND], "slow": [TIMEOUT, EMBEDDED]}
    kitchen.producer.errors.append(KafkaTimeoutError())  # of the first retry and dead letter
    kitchen.ask("a", "gone", "slow", requested_at=START - 7)
    kitchen.run()
    rows = {row[TEXT.join_key]: row["embedding_id"] for table in kitchen.archive.history for row in table.to_pylist()}
    assert kitchen.announced == [
        Announcement("embedded", TEXT.view, "a", START - 7, rows["a"]),
        Announcement("failed", TEXT.view, "gone", START - 7, 0),
        Announcement("embedded", TEXT.view, "slow", START - 7, rows["slow"]),
    ]


def test_what_could_not_be_announced_is_not_committed(kitchen: Kitchen) -> None:
    kitchen.ask("a")
    kitchen.producer.errors.extend([KafkaTimeoutError(), Crash()])
    with pytest.raises(Crash):
        kitchen.run()
    assert kitchen.keys == {"a"}
    assert kitchen.lag == 1


def test_a_replay_of_what_was_written_but_not_announced_announces_it(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes = {"gone": [NOT_FOUND]}
    kitchen.ask("a", "gone", requested_at=START - 7)
    kitchen.run()
    told = kitchen.announced
    kitchen.kafka.committed.clear()
    kitchen.run_again()
    assert len(told) == 2
    assert kitchen.announced == told * 2
    assert kitchen.retina.calls == [["a", "gone"]]


def test_a_refresh_is_a_new_event_of_what_is_archived_and_a_replay_of_it_does_nothing(kitchen: Kitchen) -> None:
    kitchen.ask("a", "b", requested_at=START - 9)
    kitchen.run()
    kitchen.ask("a", topic=TOPICS.bulk, requested_at=START - 5, refresh=True)
    kitchen.run_again()
    assert kitchen.retina.calls == [["a", "b"], ["a"]]
    assert [kitchen.archive.rows[TEXT.view, key][0] for key in "ab"] == [START - 5, START - 9]
    assert kitchen.history == ["a", "b", "a"]
    kitchen.kafka.committed.clear()
    kitchen.run_again()
    assert kitchen.history == ["a", "b", "a"]


def test_a_failed_refresh_keeps_the_row_and_marks_nothing(kitchen: Kitchen) -> None:
    kitchen.ask("a", requested_at=START - 9)
    kitchen.run()
    kitchen.retina.outcomes["a"] = [TIMEOUT, NOT_FOUND]
    kitchen.ask("a", topic=TOPICS.bulk, requested_at=START - 5, refresh=True)
    kitchen.run_again()
    assert kitchen.archive.rows[TEXT.view, "a"][0] == START - 9
    assert kitchen.marks.marks == {}
    assert [(letter.reason, letter.attempt) for letter in kitchen.dead] == [("NotFound", 1)]
    assert [each.kind for each in kitchen.announced] == ["embedded"]
    assert kitchen.lag == 0


def test_a_refresh_is_done_whatever_failed_before(kitchen: Kitchen) -> None:
    kitchen.marks.mark(TEXT.view, {"a": "NotFound: 404"})
    kitchen.ask("a", refresh=True)
    kitchen.run()
    assert kitchen.keys == {"a"}


def test_a_refresh_beside_a_first_request_is_an_event_of_its_own(kitchen: Kitchen) -> None:
    kitchen.ask("a", requested_at=START - 9)
    kitchen.ask("a", requested_at=START - 5, refresh=True)
    kitchen.ask("a", requested_at=START - 3, refresh=True)  # the last refresh answers those before
    kitchen.run()
    assert kitchen.retina.calls == [["a"], ["a"]]
    assert kitchen.archive.rows[TEXT.view, "a"][0] == START - 3
    times = [row["event_timestamp"].microsecond for table in kitchen.archive.history for row in table.to_pylist()]
    assert times == [999_991, 999_997]


def removed(kitchen: Kitchen, key: str, row: int) -> None:
    """The key's row of that event time is removed now."""
    kitchen.archive.delete_online(
        TEXT, Deletions(keys=(key,), event_time=np.array([row + AFTER]), deleted_at=kitchen.clock.now())
    )


def test_a_late_replay_does_not_bring_a_removed_key_back(kitchen: Kitchen) -> None:
    kitchen.ask("a", requested_at=START - 9)
    kitchen.ask("a", requested_at=START - 5, topic=TOPICS.bulk, refresh=True)
    kitchen.run()
    assert kitchen.archive.rows[TEXT.view, "a"][0] == START - 5
    kitchen.clock.seconds += 1
    removed(kitchen, "a", START - 5)
    kitchen.kafka.committed.clear()
    kitchen.run_again()
    assert kitchen.keys == set()
    assert len(kitchen.history) == 2
    assert kitchen.lag == 0


def test_a_request_after_a_removal_is_an_event_after_it(kitchen: Kitchen) -> None:
    kitchen.ask("a", "b", requested_at=START - 9)
    kitchen.run()
    kitchen.clock.seconds += 1
    removed(kitchen, "a", START - 9)
    removed(kitchen, "b", START - 9)
    kitchen.clock.seconds += 1
    kitchen.ask("a", requested_at=START - 9)  # a backfill by its publish time
    asked = kitchen.clock.now()
    kitchen.ask("b", requested_at=asked)  # a look-up
    kitchen.run_again()
    assert kitchen.archive.rows[TEXT.view, "a"][0] == START - 9 + 2 * AFTER
    assert kitchen.archive.rows[TEXT.view, "b"][0] == asked
    kitchen.kafka.committed.clear()
    kitchen.run_again()
    assert len(kitchen.history) == 4


def test_a_retryable_failure_is_tried_again_when_it_is_due_with_its_event_time(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes["slow"] = [TIMEOUT, TIMEOUT, EMBEDDED]
    kitchen.ask("slow", requested_at=START - 3)
    kitchen.run()
    assert [(r.attempt, r.requested_at) for r in kitchen.retries] == [(1, START - 3), (2, START - 3)]
    assert kitchen.archive.rows[TEXT.view, "slow"][0] == START - 3
    assert kitchen.clock.seconds >= 1 + 2  # the delays, as handed in
    assert kitchen.dead == []
    assert kitchen.lag == 0


def test_a_key_is_given_up_after_the_last_attempt(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes["slow"] = [TIMEOUT]
    kitchen.ask("slow")
    kitchen.run()
    assert len(kitchen.retina.calls) == MAX_ATTEMPTS
    assert len(kitchen.retries) == MAX_ATTEMPTS - 1
    (letter,) = kitchen.dead
    assert (letter.reason, letter.attempt, letter.topic) == ("Timeout", MAX_ATTEMPTS - 1, TOPICS.retry)
    assert kitchen.marks.marks == {(TEXT.view, "slow"): "Timeout: slow"}
    assert kitchen.lag == 0


def test_a_message_that_claims_endless_attempts_fails_once(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes["slow"] = [TIMEOUT]
    kitchen.ask("slow", attempt=2**62)
    kitchen.run()
    assert len(kitchen.retina.calls) == len(kitchen.dead) == 1


def test_a_retry_that_is_not_due_waits_while_others_pass(kitchen: Kitchen) -> None:
    kitchen.ask("later", topic=TOPICS.retry, not_before=START + 20_000_000)
    kitchen.ask("behind it", topic=TOPICS.retry)
    kitchen.ask("other partition", topic=TOPICS.retry, partition=1)
    kitchen.ask("live")
    kitchen.run()
    assert kitchen.retina.calls == [["live", "other partition"], ["later", "behind it"]]
    assert 20 <= kitchen.clock.seconds < 22
    assert kitchen.consumer.commits[0] == {TopicPartition(TOPICS.live, 0): 1, TopicPartition(TOPICS.retry, 1): 1}
    assert kitchen.lag == 0


def test_a_retry_that_claims_to_be_due_in_a_thousand_years_holds_up_nothing(kitchen: Kitchen) -> None:
    kitchen.ask("later", topic=TOPICS.retry, not_before=2**62)
    kitchen.run()
    assert kitchen.keys == {"later"}
    assert kitchen.clock.seconds < 62


@given(st.integers(0, 10**9))
def test_retries_are_delayed_by_a_second_to_a_minute(attempt: int) -> None:
    most = min(60.0, 2.0 ** min(attempt, 10))
    assert most / 2 <= retry_delay(attempt) <= most


def test_a_busy_or_absent_retina_is_waited_for_and_costs_no_attempt(
    kitchen: Kitchen, caplog: pytest.LogCaptureFixture
) -> None:
    kitchen.retina.errors.extend([RetinaBusy("full")] * 3 + [RetinaAway("gone")] * 4)
    kitchen.ask("a")
    kitchen.run()
    assert kitchen.keys == {"a"}
    assert (kitchen.retries, kitchen.dead) == ([], [])
    assert kitchen.clock.seconds > 10
    assert [r for r in caplog.records if r.levelno == logging.ERROR]


@pytest.mark.parametrize(("hint", "waited"), [(3.0, 3.0), (600.0, 10.0)])
def test_a_busy_retina_is_given_the_time_that_it_asks_for_up_to_a_limit(
    kitchen: Kitchen, hint: float, waited: float
) -> None:
    kitchen.retina.errors.append(RetinaBusy("full", hint))
    kitchen.ask("a")
    kitchen.run()
    assert kitchen.keys == {"a"}
    assert waited <= kitchen.clock.seconds < waited + 2


@pytest.mark.parametrize("error", [RetinaAway("gone"), RetinaBusy("full")])
def test_while_a_batch_waits_no_partition_is_read(kitchen: Kitchen, error: Exception) -> None:
    kitchen.retina.errors.append(error)
    kitchen.ask("a")
    kitchen.consumer.before_poll.extend([lambda: None] * 2 + [lambda: kitchen.ask("b")])
    kitchen.run(Limits(max_batch=1))
    assert kitchen.retina.calls == [["a"], ["b"]]
    assert kitchen.lag == 0


def test_a_view_that_retina_refuses_waits_in_the_retry_topic_and_the_others_go_on(
    kitchen: Kitchen, caplog: pytest.LogCaptureFixture
) -> None:
    kitchen.retina.errors.extend([RetinaRefused("fingerprint 1 is not 2")])
    kitchen.ask("refused")
    kitchen.ask("http://h/1", view=IMAGE.view)
    kitchen.run()
    assert kitchen.retina.calls[0] == ["http://h/1"]
    assert kitchen.keys == {"refused", "http://h/1"}
    assert [retry.attempt for retry in kitchen.retries] == [0]
    assert kitchen.dead == []
    assert "fingerprint 1 is not 2" in caplog.text


@pytest.mark.parametrize("other", [replace(TEXT, dim=3), replace(TEXT, pinned="seeded:1")])
def test_a_reply_of_another_encoder_is_never_archived(kitchen: Kitchen, other: EncoderSpec) -> None:
    kitchen.retina.specs[TEXT.view] = other
    kitchen.ask("a")
    kitchen.run()  # until patience ends
    assert kitchen.keys == set()
    assert kitchen.history == []
    assert kitchen.dead == []
    assert {retry.attempt for retry in kitchen.retries} == {0}


def test_an_outage_of_the_archive_is_waited_for_and_history_is_appended_once(kitchen: Kitchen) -> None:
    kitchen.archive.history_errors.extend([ArchiveUnavailable("disk full")] * 2)
    kitchen.archive.online_errors.extend([ArchiveUnavailable("no host")] * 9)
    kitchen.ask("a")
    kitchen.run()
    assert kitchen.keys == {"a"}
    assert kitchen.history == ["a"]
    assert len(kitchen.retina.calls) == 1
    assert kitchen.lag == 0


def test_a_crash_between_history_and_online_is_repaired_by_a_replay(kitchen: Kitchen) -> None:
    kitchen.archive.online_errors.append(Crash())
    kitchen.ask("a", "b")
    with pytest.raises(Crash):
        kitchen.run()
    assert kitchen.consumer.commits == []
    assert kitchen.consumer.closed
    kitchen.run_again()
    assert kitchen.keys == {"a", "b"}
    assert kitchen.lag == 0
    first, second = kitchen.archive.history
    same = ["text", "embedding_id", "event_timestamp", "content_hash"]
    assert first.select(same).equals(second.select(same))


def test_a_crash_before_the_commit_repeats_no_effect(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes["gone"] = [NOT_FOUND]
    kitchen.ask("a", "gone")
    kitchen.consumer.commit_errors.append(Crash())
    with pytest.raises(Crash):
        kitchen.run()
    kitchen.run_again()
    assert kitchen.history == ["a"]
    assert len(kitchen.dead) == 1
    assert len(kitchen.retina.calls) == 1
    assert kitchen.lag == 0


def test_nothing_is_committed_or_marked_before_the_broker_has_the_failures(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes = {"gone": [NOT_FOUND], "slow": [TIMEOUT, EMBEDDED]}
    kitchen.producer.errors.append(Crash())
    kitchen.ask("gone", "slow")
    with pytest.raises(Crash):
        kitchen.run()
    assert kitchen.consumer.commits == []
    assert kitchen.marks.marks == {}
    kitchen.run_again()
    assert kitchen.keys == {"slow"}
    assert kitchen.marks.marks == {(TEXT.view, "gone"): "NotFound: 404"}


def test_a_broker_that_does_not_acknowledge_is_asked_again(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes["gone"] = [NOT_FOUND]
    kitchen.producer.errors.extend([KafkaTimeoutError("no acknowledgement")] * 2)
    kitchen.ask("gone")
    kitchen.run()
    assert [letter.key for letter in kitchen.dead] == ["gone"]
    assert kitchen.lag == 0


def test_a_commit_during_a_rebalance_is_repeated(kitchen: Kitchen) -> None:
    kitchen.consumer.commit_errors.extend([CommitFailedError("rebalance")] * 2)
    kitchen.ask("a")
    kitchen.run()
    assert kitchen.lag == 0
    assert len(kitchen.retina.calls) == 1


def test_a_commit_that_cannot_begin_is_repeated(kitchen: Kitchen) -> None:
    begin = kitchen.consumer.commit_async
    errors = [KafkaConnectionError("no broker")]

    def refused(*args: Any, **named: Any) -> None:
        if errors:
            raise errors.pop()
        begin(*args, **named)

    kitchen.consumer.commit_async = refused  # type: ignore[method-assign]
    kitchen.ask("a", "b")
    kitchen.run(Limits(max_batch=1))
    assert kitchen.lag == 0
    assert kitchen.retina.calls == [["a"], ["b"]]


def test_batches_go_on_while_a_commit_is_on_its_way_and_are_committed_together(kitchen: Kitchen) -> None:
    kitchen.consumer.polls_a_commit = 8
    kitchen.ask(*"abcd")
    kitchen.run(Limits(max_batch=1))
    assert kitchen.consumer.commits == [{TopicPartition(TOPICS.live, 0): 1}, {TopicPartition(TOPICS.live, 0): 4}]
    assert kitchen.retina.calls == [["a"], ["b"], ["c"], ["d"]]


def test_of_batches_that_are_committed_together_a_partition_that_went_is_left_to_its_owner(kitchen: Kitchen) -> None:
    gone, kept = (TopicPartition(TOPICS.live, partition) for partition in (0, 1))
    kitchen.consumer.polls_a_commit = 8
    kitchen.ask("a", "b", "c", partition=0)
    kitchen.ask("d", partition=1)
    owners = kitchen.kafka.committed  # of whoever has the partition now

    def revoke_after_the_first() -> None:
        if kitchen.consumer.commits and gone in kitchen.consumer.positions:
            kitchen.consumer.revoke([gone])
            owners[gone] = 3

    kitchen.consumer.before_poll.extend([revoke_after_the_first] * 12)
    kitchen.run(Limits(max_batch=1))
    assert kitchen.retina.calls == [["a"], ["b"], ["c"], ["d"]]
    assert kitchen.consumer.commits == [{gone: 1}, {kept: 1}]
    assert owners == {gone: 3, kept: 1}


def test_a_partition_that_went_during_a_slow_batch_is_not_committed(kitchen: Kitchen) -> None:
    gone = TopicPartition(TOPICS.live, 0)
    kitchen.retina.errors.append(RetinaBusy("full"))
    kitchen.ask("a", partition=0)
    kitchen.ask("b", partition=1)
    kitchen.consumer.before_poll.extend([lambda: None] * 2 + [lambda: kitchen.consumer.revoke([gone])])
    kitchen.run()
    assert gone not in kitchen.kafka.committed
    assert kitchen.kafka.committed == {TopicPartition(TOPICS.live, 1): 1}
    assert kitchen.keys == {"a", "b"}  # harmless: the other owner finds it archived


def test_a_batch_whose_partitions_all_went_is_given_up(kitchen: Kitchen) -> None:
    gone = TopicPartition(TOPICS.live, 0)
    kitchen.retina.errors.append(RetinaBusy("full"))
    kitchen.ask("a")
    kitchen.consumer.before_poll.extend([lambda: None] * 2 + [lambda: kitchen.consumer.revoke([gone]), lambda: None])
    kitchen.run()
    assert kitchen.keys == set()
    assert kitchen.kafka.committed == {}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_partition_that_comes_back_is_read_from_its_committed_offset(kitchen: Kitchen, at_once: bool) -> None:
    away = TopicPartition(TOPICS.live, 0)
    kitchen.retina.errors.append(RetinaBusy("full"))
    kitchen.ask("a", "b")

    def revoke() -> None:
        kitchen.consumer.revoke([away])
        if at_once:
            kitchen.consumer.assign([away])

    back = [] if at_once else [lambda: kitchen.consumer.assign([away])]
    kitchen.consumer.before_poll.extend([lambda: None] * 2 + [revoke, *back])
    kitchen.run()
    assert kitchen.keys == {"a", "b"}
    assert sorted(kitchen.history) == ["a", "b"]
    assert kitchen.lag == 0


def test_a_view_removed_while_its_batch_waits_does_not_hold_the_others_up(kitchen: Kitchen) -> None:
    kitchen.archive.online_errors.extend([ArchiveUnavailable("unconfigured table")] * 10_000)
    kitchen.ask("a")

    def remove() -> None:
        del kitchen.specs[TEXT.view]
        kitchen.directory.refresh()
        kitchen.archive.online_errors.clear()

    kitchen.consumer.before_poll.extend([lambda: None] * 6 + [remove])
    kitchen.ask("http://h/1", view=IMAGE.view, partition=1)
    kitchen.run(Limits(max_batch=1))
    assert kitchen.keys == {"http://h/1"}
    assert [letter.reason for letter in kitchen.dead] == ["UnknownView"]


def test_stop_finishes_the_batch_at_hand(kitchen: Kitchen) -> None:
    encode = kitchen.retina.encode

    def stopped(view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Any:
        kitchen.stop.set()
        return encode(view, fingerprint, keys, timeout)

    kitchen.retina.encode = stopped  # type: ignore[method-assign]
    kitchen.ask("a", "b")
    kitchen.run(Limits(max_batch=1))
    assert kitchen.keys == {"a"}
    assert kitchen.kafka.committed == {TopicPartition(TOPICS.live, 0): 1}
    assert kitchen.consumer.closed


def test_stop_during_an_outage_gives_the_batch_back(kitchen: Kitchen) -> None:
    kitchen.retina.errors.extend([RetinaAway("gone")] * 10_000)
    kitchen.ask("a")
    kitchen.consumer.before_poll.extend([lambda: None] * 8 + [kitchen.stop.set])
    kitchen.run()
    assert kitchen.kafka.committed == {}
    kitchen.retina.errors.clear()
    kitchen.run_again()
    assert kitchen.keys == {"a"}
    assert kitchen.lag == 0


FATES: dict[str, Sequence[Outcome]] = {
    "fine": [EMBEDDED],
    "gone": [NOT_FOUND],
    "slow": [TIMEOUT, EMBEDDED],
    "hopeless": [TIMEOUT],
}


@given(
    fates=st.lists(st.sampled_from([*FATES, "poison"]), max_size=12),
    crashes=st.lists(st.sampled_from(["history", "online", "producer", "commit"]), max_size=4),
    partitions=st.lists(st.integers(0, 1), min_size=12, max_size=12),
    max_batch=st.integers(1, 5),
)
def test_whatever_crashes_no_request_is_lost_and_none_is_committed_unfinished(
    fates: list[str], crashes: list[str], partitions: list[int], max_batch: int
) -> None:
    kitchen = Kitchen()
    for i, fate in enumerate(fates):
        if fate == "poison":
            kitchen.kafka.append(TOPICS.live, b"poison", partition=partitions[i])
        else:
            kitchen.retina.outcomes[f"{fate} {i}"] = list(FATES[fate])
            kitchen.ask(f"{fate} {i}", partition=partitions[i])
    for where in crashes:
        {
            "history": kitchen.archive.history_errors,
            "online": kitchen.archive.online_errors,
            "producer": kitchen.producer.errors,
            "commit": kitchen.consumer.commit_errors,
        }[where].append(Crash())
        try:
            kitchen.run(Limits(max_batch=max_batch))
        except Crash:
            finished = {letter.key for letter in kitchen.dead} | {r.key for r in kitchen.retries} | kitchen.keys
            for partition, offset in kitchen.kafka.committed.items():
                for record in kitchen.kafka.logs[partition][:offset]:
                    if record.value != b"poison":
                        assert EmbedRequest.decode(record.value).key in finished
                    else:
                        assert (partition.partition, record.offset) in {(x.partition, x.offset) for x in kitchen.dead}
        kitchen.consumer = FakeConsumer(kitchen.kafka, kitchen.stop)
    kitchen.run(Limits(max_batch=max_batch))
    assert kitchen.lag == 0
    named = [f"{fate} {i}" for i, fate in enumerate(fates)]
    assert kitchen.keys == {name for name in named if name.startswith(("fine", "slow"))}
    assert {key for _, key in kitchen.marks.marks} == {n for n in named if n.startswith(("gone", "hopeless"))}
    letters = {(letter.topic, letter.partition, letter.offset): letter for letter in kitchen.dead}
    given_up = sum(fate in ("gone", "poison", "hopeless") for fate in fates)
    assert len({letter.key or place for place, letter in letters.items()}) == given_up


# ── batches that overlap ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class WaitingMarks(MemoryFailureMarks):
    """Marks that are written only when something has happened, or after a while."""

    until: threading.Event = field(default_factory=threading.Event)

    def mark(self, view: str, failures: Mapping[str, str], seconds: int = MARK_SECONDS) -> None:
        self.until.wait(3.0)
        super().mark(view, failures, seconds)


def test_a_retry_that_is_due_before_the_batch_that_sent_it_is_committed_is_not_dropped(kitchen: Kitchen) -> None:
    kitchen.retina.outcomes = {"slow": [TIMEOUT, EMBEDDED], "gone": [NOT_FOUND]}
    marks = WaitingMarks({})
    kitchen.marks = marks
    kitchen.consumer.patience = math.inf  # threads wait in real time
    encode = kitchen.retina.encode

    def told(view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Any:
        if kitchen.retina.calls:
            marks.until.set()
        return encode(view, fingerprint, keys, timeout)

    kitchen.retina.encode = told  # type: ignore[method-assign]
    kitchen.ask("slow", "gone")
    kitchen.run(overlap=True)
    assert marks.until.is_set()  # it was tried again while its first batch was not done
    assert kitchen.keys == {"slow"}
    assert kitchen.lag == 0


def test_what_was_taken_after_a_batch_that_is_given_up_is_never_committed_before_it(kitchen: Kitchen) -> None:
    gone, stays = TopicPartition(TOPICS.live, 0), TopicPartition(TOPICS.live, 1)
    inside = 10  # batches, up to the stage that waits: one or two at work in each, and one waiting
    kitchen.consumer.patience = math.inf
    tries = 10_000
    kitchen.archive.online_errors.extend([ArchiveUnavailable("no host")] * tries)
    kitchen.ask("a", partition=0)
    kitchen.ask(*(f"b{i}" for i in range(inside + 2)), partition=1)
    poll, commit = kitchen.consumer.poll, kitchen.consumer.commit
    early: list[str] = []

    def rebalance(**given: Any) -> Any:
        if kitchen.consumer.positions.get(gone) and len(kitchen.archive.online_errors) == tries:
            time.sleep(0.01)
            return {}  # until the first batch waits where it is written, none may overtake it
        if gone in kitchen.consumer.positions and kitchen.consumer.positions.get(stays) == inside:
            kitchen.consumer.revoke([gone])
            time.sleep(1.5)  # longer than the first batch waits: all that are inside come out within this poll
            kitchen.archive.online_errors.clear()
        return poll(**given)

    def checked(offsets: Any, timeout_ms: int) -> None:
        commit(offsets, timeout_ms)
        done = kitchen.kafka.logs[stays][: kitchen.kafka.committed.get(stays, 0)]
        early.extend({EmbedRequest.decode(record.value).key for record in done} - kitchen.keys)

    kitchen.consumer.poll, kitchen.consumer.commit = rebalance, checked  # type: ignore[method-assign]
    kitchen.run(Limits(max_batch=1), overlap=True)
    assert gone not in kitchen.consumer.positions
    assert early == []
    assert kitchen.keys == {f"b{i}" for i in range(inside + 2)}


# ── look-ups before backfills ────────────────────────────────────────────────────────────────────────────────────────


def test_what_look_ups_ask_for_goes_before_a_backfill(kitchen: Kitchen) -> None:
    kitchen.ask(*(f"bulk {i}" for i in range(10)), topic=TOPICS.bulk, priority="bulk")
    kitchen.ask("live 0", "live 1")
    kitchen.run(Limits(max_batch=4))
    assert kitchen.retina.calls[0] == ["live 0", "live 1"]
    assert len(kitchen.keys) == 12
    assert kitchen.lag == 0


def test_a_look_up_waits_for_one_batch_of_a_backfill_and_no_more(kitchen: Kitchen) -> None:
    kitchen.ask(*(f"bulk {i}" for i in range(200)), topic=TOPICS.bulk, priority="bulk")
    encode = kitchen.retina.encode

    def slowly(view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Any:
        kitchen.clock.seconds += 0.1 * len(keys)
        if len(kitchen.retina.calls) == 3:
            kitchen.ask("live")
        return encode(view, fingerprint, keys, timeout)

    kitchen.retina.encode = slowly  # type: ignore[method-assign]
    kitchen.run(Limits(bulk_seconds=0.5))
    sizes = [len(call) for call in kitchen.retina.calls]
    assert kitchen.retina.calls[4] == ["live"]
    assert set(sizes[1:4]) == {5}  # half a second each, once it is known how long a key takes
    assert len(kitchen.keys) == 201
    assert kitchen.lag == 0


def test_a_backfill_is_not_held_up_by_a_retry_that_is_not_due(kitchen: Kitchen) -> None:
    kitchen.ask("later", topic=TOPICS.retry, not_before=START + 30_000_000)
    kitchen.ask("bulk", topic=TOPICS.bulk, priority="bulk")
    kitchen.run()
    assert kitchen.retina.calls == [["bulk"], ["later"]]
    assert kitchen.lag == 0
