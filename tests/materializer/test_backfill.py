"""What a backfill sends, what it leaves out, and what it takes for done."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from kafka.errors import KafkaTimeoutError

from encoders.spec import EncoderSpec
from materializer import backfill
from materializer.archive import ArchiveUnavailable, MemoryArchive
from materializer.backfill import AHEAD_MICROSECONDS, CHUNK, EXAMPLES, Backfill, BackfillStopped, Rate, Tally
from materializer.backfill_input import InputError, Row
from materializer.messages import EmbedRequest, Topics
from tests.materializer.fakes import START, FakeClock, FakeKafka, FakeProducer

TEXT = EncoderSpec(
    name="tiny", version="v1", modality="text", dim=4, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
IMAGE = replace(TEXT, name="pic", modality="image", network="torchvision:x", drop_query_params=("sig",))
TOPICS = Topics(live="requests")


class Silent:
    """An archive that does not answer."""

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]:
        raise ArchiveUnavailable("Cassandra is away")


class Desk:
    """A backfill and all it touches."""

    def __init__(self, spec: EncoderSpec = TEXT) -> None:
        self.spec = spec
        self.clock = FakeClock()
        self.kafka = FakeKafka(self.clock)
        self.producer = FakeProducer(self.kafka)
        self.archive = MemoryArchive()
        self.stop = threading.Event()
        self.saved: list[int] = []

    def run(self, rows: Iterator[Row | None] | Sequence[Row | None], **changed: object) -> Tally:
        parts: dict[str, object] = {
            "producer": self.producer,
            "archive": self.archive,
            "save": self.saved.append,
        }
        self.work = Backfill(
            spec=self.spec,
            topics=TOPICS,
            clock=self.clock,
            stop=self.stop,
            **(parts | changed),  # type: ignore[arg-type]
        )
        return self.work.run(rows)

    @property
    def sent(self) -> list[EmbedRequest]:
        return [EmbedRequest.decode(record.value) for record in self.kafka.records(TOPICS.bulk)]

    @property
    def keys(self) -> list[str]:
        return [request.key for request in self.sent]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def row(number: int, key: str, published_at: int | None = None, problem: str = "") -> Row:
    return Row(number=number, position=number * 10, key=key, published_at=published_at, problem=problem)


def rows(*keys: str) -> list[Row | None]:
    return [row(number, key) for number, key in enumerate(keys, 1)]


def test_keys_are_asked_for_on_the_bulk_topic_as_of_when_they_were_published(desk: Desk) -> None:
    tally = desk.run([row(1, "a", published_at=START - 5), row(2, "b")])
    assert desk.sent == [
        EmbedRequest(view=TEXT.view, key="a", requested_at=START - 5, priority="bulk"),
        EmbedRequest(view=TEXT.view, key="b", requested_at=START, priority="bulk"),
    ]
    assert [record.key for record in desk.kafka.records(TOPICS.bulk)] == [r.partition_key for r in desk.sent]
    assert (tally.read, tally.sent, tally.position) == (2, 2, 20)
    assert desk.saved == [2]


def test_what_is_sent_is_canonical_and_what_is_the_same_then_is_sent_once() -> None:
    desk = Desk(IMAGE)
    tally = desk.run(rows("HTTP://A.example:80/x?sig=1", "http://a.example/x?sig=2", "http://a.example/y"))
    assert desk.keys == ["http://a.example/x", "http://a.example/y"]
    assert (tally.sent, tally.duplicates) == (2, 1)


def test_a_duplicate_is_known_in_later_pieces_too_until_it_is_forgotten(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "REMEMBERED", CHUNK)
    many = [f"k{number}" for number in range(CHUNK)]
    tally = desk.run(rows(*many, "k0", "k9", "new", "k0"))
    assert tally.duplicates == 2
    assert desk.keys == [*many, "new", "k0"]  # which made room for `new`


def test_archived_keys_are_not_asked_for(desk: Desk) -> None:
    desk.archive.rows[TEXT.view, "b"] = (START, np.zeros(4, dtype=np.float32))
    desk.archive.rows["other__v1", "a"] = (START, np.zeros(4, dtype=np.float32))
    tally = desk.run(rows("a", " b ", "c"))
    assert desk.keys == ["a", "c"]
    assert (tally.archived, tally.sent) == (1, 2)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (row(1, " "), "empty"),
        (row(1, "\udc80"), "surrogate"),
        (row(1, "x" * 8193), "8193 bytes"),
        (row(1, "x", problem="the key is null"), "the key is null"),
        (row(1, "x", published_at=-1), "before 1970"),
        (row(1, "x", published_at=START + AHEAD_MICROSECONDS + 1), "in the future"),
        (row(1, "x", published_at=2**70), "in the future"),
    ],
)
def test_a_row_that_names_no_input_is_refused_and_the_rest_goes_on(desk: Desk, bad: Row, why: str) -> None:
    tally = desk.run([bad, row(2, "good")])
    assert desk.keys == ["good"]
    assert (tally.read, tally.refused, tally.sent) == (2, 1, 1)
    assert why in tally.examples[0].why
    assert len(tally.examples[0].key) <= 200


def test_of_many_refused_rows_a_few_are_shown(desk: Desk) -> None:
    tally = desk.run(rows(*["\0"] * 20))
    assert (tally.refused, [each.row for each in tally.examples]) == (20, list(range(1, EXAMPLES + 1)))


def test_a_clock_that_is_a_little_ahead_is_taken_for_now(desk: Desk) -> None:
    desk.run([row(1, "x", published_at=START + AHEAD_MICROSECONDS)])
    assert [request.requested_at for request in desk.sent] == [START]


def test_a_dry_run_sends_and_saves_nothing_and_counts_all(desk: Desk) -> None:
    desk.archive.rows[TEXT.view, "b"] = (START, np.zeros(4, dtype=np.float32))
    tally = desk.run(rows("a", "b", "a", ""), producer=None)
    assert (tally.sent, tally.archived, tally.duplicates, tally.refused) == (1, 1, 1, 1)
    assert (desk.sent, desk.saved) == ([], [])


def test_how_far_it_is_gets_saved_when_the_broker_has_acknowledged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "MAX_UNACKNOWLEDGED", 3)
    seen: list[tuple[int, int]] = []

    def save(number: int) -> None:
        seen.append((number, len(desk.sent)))

    desk.run(rows(*"abcdefgh"), save=save)
    assert seen == [(3, 3), (6, 6), (8, 8)]


def test_a_slow_run_is_saved_after_some_seconds(desk: Desk) -> None:
    def slow() -> Iterator[Row]:
        for number in range(1, 2 * CHUNK + 1):
            if number == CHUNK + 1:
                desk.clock.seconds += backfill.CHECKPOINT_SECONDS
            yield row(number, f"k{number}")

    desk.run(slow())
    assert desk.saved == [CHUNK + 1, 2 * CHUNK]


def test_what_the_broker_does_not_acknowledge_is_not_taken_for_done(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "MAX_UNACKNOWLEDGED", 2)

    def reading() -> Iterator[Row]:
        for each in rows(*"abcdef"):
            assert each is not None
            if each.number == 3:
                desk.producer.errors.append(KafkaTimeoutError("too late"))
            yield each

    monkeypatch.setattr(backfill, "CHUNK", 1)
    with pytest.raises(BackfillStopped, match="too late"):
        desk.run(reading())
    assert desk.saved == [2]
    assert (desk.work.tally.read, desk.work.tally.sent) == (4, 3)  # of c and d, which went together, one came through
    assert desk.keys == ["a", "b", "c"]


def test_a_place_that_cannot_be_saved_stops_it(desk: Desk) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BackfillStopped, match="No space left"):
        desk.run(rows("a"), save=full)
    assert desk.keys == ["a"]


def test_an_archive_that_is_away_stops_it_before_anything_is_sent(desk: Desk) -> None:
    with pytest.raises(BackfillStopped, match="Cassandra is away"):
        desk.run(rows("a"), archive=Silent())
    assert (desk.sent, desk.saved) == ([], [])


def test_what_was_read_before_an_input_error_is_sent_and_saved(desk: Desk) -> None:
    def breaking() -> Iterator[Row]:
        yield from (row(number, f"k{number}") for number in range(1, CHUNK + 2))
        raise InputError("line 9 is no CSV")

    with pytest.raises(InputError, match="line 9"):
        desk.run(breaking())
    assert len(desk.sent) == CHUNK
    assert desk.saved == [CHUNK]


def test_a_stop_ends_it_after_the_row_at_hand_and_saves(desk: Desk) -> None:
    class StopAfter(FakeProducer):
        def send(self, topic: str, value: bytes, *rest: object) -> object:  # type: ignore[override]
            if EmbedRequest.decode(value).key == "b":
                desk.stop.set()
            return super().send(topic, value, *rest)  # type: ignore[arg-type]

    tally = desk.run(rows(*"abcd"), producer=StopAfter(desk.kafka))
    assert desk.keys == ["a", "b"]
    assert (tally.read, tally.sent, desk.saved) == (2, 2, [2])


def test_a_pipe_that_pauses_is_not_held_back(desk: Desk) -> None:
    seen: list[list[str]] = []

    def pausing() -> Iterator[Row | None]:
        yield None
        yield row(1, "a")
        yield None
        seen.append(desk.keys)
        yield row(2, "b")

    desk.run(pausing())
    assert seen == [["a"]]
    assert desk.keys == ["a", "b"]


def test_a_rate_spreads_requests_evenly_and_never_catches_up_on_a_long_stall() -> None:
    clock = FakeClock()
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        clock.seconds += seconds

    rate = Rate(10.0, clock, wait)
    for _ in range(21):
        rate.hold()
    assert clock.seconds == pytest.approx(2.0)
    clock.seconds += 60.0
    waits.clear()
    for _ in range(21):
        rate.hold()
    assert sum(waits) == pytest.approx(1.0)


def test_only_what_is_sent_counts_for_the_rate(desk: Desk) -> None:
    waits: list[float] = []
    desk.stop.wait = lambda seconds: bool(waits.append(seconds))  # type: ignore[assignment, method-assign, func-returns-value]
    desk.run(rows("a", "a", "", "b", "c"), per_second=2.0)
    assert waits == [pytest.approx(0.5), pytest.approx(1.0)]  # nothing moves the fake clock


def test_an_empty_input_is_done_at_once(desk: Desk) -> None:
    reported: list[Tally] = []
    report: Callable[[Tally], None] = reported.append
    assert desk.run([], report=report).read == 0
    assert (desk.sent, desk.saved, len(reported)) == ([], [], 1)


def test_a_refresh_asks_for_what_is_archived_too(desk: Desk) -> None:
    desk.archive.rows[TEXT.view, "a"] = (START - 9, np.zeros(4, dtype=np.float32))
    tally = desk.run(rows("a", "b", " a "), refresh=True)
    assert [(request.key, request.refresh, request.requested_at) for request in desk.sent] == [
        ("a", True, START),
        ("b", True, START),
    ]
    assert (tally.sent, tally.archived, tally.duplicates) == (2, 0, 1)
