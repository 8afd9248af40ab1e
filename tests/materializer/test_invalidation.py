"""What removing keys does to each store, and that being killed on the way changes nothing in the end."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from kafka.errors import KafkaTimeoutError

from encoders.spec import EncoderSpec
from feature_repo.embeddings import RowVersion, embedding_id
from feature_repo.failures import MemoryFailureMarks
from feature_repo.session import StoreUnavailable
from materializer.announcements import Announcement, Announcer
from materializer.archive import ArchiveUnavailable, EmbeddedBatch, MemoryArchive
from materializer.backfill_input import Row
from materializer.deletions import AFTER, Deletions
from materializer.invalidation import Invalidation, InvalidationStopped, Removed
from materializer.messages import Topics, decode_announcements
from tests.materializer.fakes import START, FakeClock, FakeKafka, FakeProducer

TEXT = EncoderSpec(
    name="tiny", version="v1", modality="text", dim=4, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
TOPICS = Topics(live="requests")
EARLY = START - 9


class Killed(Exception):
    """The process dies here."""


@dataclass(frozen=True)
class BreakingArchive(MemoryArchive):
    """A `MemoryArchive` that fails before or after a step, once."""

    fails: dict[str, Exception] = field(default_factory=dict)

    def versions(self, spec: EncoderSpec, keys: Sequence[str]) -> dict[str, RowVersion]:
        self.fail("before reading")
        return super().versions(spec, keys)

    def append_deletions(self, spec: EncoderSpec, deletions: Deletions) -> None:
        self.fail("before history")
        super().append_deletions(spec, deletions)
        self.fail("after history")

    def delete_online(self, spec: EncoderSpec, deletions: Deletions) -> None:
        self.fail("before online")
        super().delete_online(spec, deletions)
        self.fail("after online")

    def fail(self, step: str) -> None:
        if step in self.fails:
            raise self.fails.pop(step)


@dataclass(frozen=True)
class BreakingMarks(MemoryFailureMarks):
    """Failure marks that fail as the archive is told to."""

    fail: Callable[[str], None]

    def clear(self, view: str, keys: Sequence[str]) -> None:
        self.fail("before marks")
        super().clear(view, keys)
        self.fail("after marks")


class House:
    """An archive with two keys in it, one marked, and what removes keys."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.kafka = FakeKafka(self.clock)
        self.producer = FakeProducer(self.kafka)
        self.archive = BreakingArchive()
        self.marks = BreakingMarks({(TEXT.view, "marked"): "NotFound: 404"}, self.archive.fail)
        self.vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
        self.write(["a", "b"], EARLY)
        self.stop = threading.Event()

    def write(self, keys: Sequence[str], event_time: int) -> None:
        self.archive.write_online(
            TEXT,
            EmbeddedBatch.of(
                TEXT.view,
                keys=keys,
                vectors=self.vectors[: len(keys)],
                event_time=np.full(len(keys), event_time, dtype=np.int64),
                content_hash=[""] * len(keys),
                created_at=self.clock.now(),
            ),
        )

    def remove(self, *keys: str) -> Removed:
        self.clock.seconds += 1
        work = Invalidation(
            spec=TEXT,
            archive=self.archive,
            marks=self.marks,
            announcer=Announcer(self.producer, TOPICS),
            clock=self.clock,
            stop=self.stop,
        )
        return work.run(Row(number=n, position=n, key=key) for n, key in enumerate(keys, 1))

    @property
    def announced(self) -> list[Announcement]:
        records = self.kafka.records(TOPICS.embedded)
        return [each for record in records for each in decode_announcements(record.value)]

    @property
    def deletions(self) -> list[Mapping[str, object]]:
        return [row for table in self.archive.history for row in table.to_pylist()]


@pytest.fixture
def house() -> House:
    return House()


def test_a_key_goes_from_history_and_online_and_its_mark_and_caches_are_told(house: House) -> None:
    done = house.remove(" a ", "marked", "a", "")
    assert (done.removed, done.before, done.absent, done.refused, done.position) == (1, 0, 1, 1, 4)
    assert done.examples[0].row == 4
    assert list(house.archive.rows) == [(TEXT.view, "b")]
    assert house.marks.marks == {}
    (row,) = house.deletions
    assert (row["text"], row["embedding"], row["embedding_id"], row["content_hash"]) == ("a", None, None, None)
    id_ = embedding_id(TEXT.view, "a", EARLY, house.vectors[0])
    assert house.announced == [
        Announcement("invalidated", TEXT.view, "a", EARLY, id_),
        Announcement("invalidated", TEXT.view, "marked", 0, 0),
    ]


def test_a_late_replay_stays_removed_and_a_later_event_comes_back(house: House) -> None:
    house.remove("a", "b")
    house.write(["a"], EARLY)
    house.write(["b"], EARLY + 2 * AFTER)
    assert list(house.archive.rows) == [(TEXT.view, "b")]


def test_what_was_removed_before_is_told_again_and_not_written_again(house: House) -> None:
    house.remove("a")
    done = house.remove("a")
    assert (done.removed, done.before) == (0, 1)
    assert len(house.deletions) == 1
    assert [(each.key, each.event_time) for each in house.announced] == [("a", EARLY)] * 2


@pytest.mark.parametrize(
    "step",
    [
        "before reading",
        "before history",
        "after history",
        "before online",
        "after online",
        "before marks",
        "after marks",
    ],
)
def test_a_kill_at_any_step_and_a_second_run_end_as_one_run_does(house: House, step: str) -> None:
    house.archive.fails[step] = Killed()
    with pytest.raises(Killed):
        house.remove("a", "marked")
    house.remove("a", "marked")
    once = House()
    once.remove("a", "marked")
    assert house.archive.rows.keys() == once.archive.rows.keys()
    assert {key: each.event_time for key, each in house.archive.deleted.items()} == {
        key: each.event_time for key, each in once.archive.deleted.items()
    }
    assert house.marks.marks == {}
    assert {(row["text"], row["event_timestamp"]) for row in house.deletions} == {
        (row["text"], row["event_timestamp"]) for row in once.deletions
    }
    assert [(each.key, each.event_time) for each in house.announced] == [("a", EARLY), ("marked", 0)]


@pytest.mark.parametrize("error", [ArchiveUnavailable("disk full"), StoreUnavailable("Cassandra is away")])
def test_an_outage_stops_it_with_what_was_done(house: House, error: Exception) -> None:
    house.archive.fails["before online"] = error
    with pytest.raises(InvalidationStopped, match=f"run it again: {error}"):
        house.remove("a")


def test_what_cannot_be_told_is_told_by_the_next_run(house: House) -> None:
    house.producer.errors.append(KafkaTimeoutError("no broker"))
    with pytest.raises(InvalidationStopped, match="no broker"):
        house.remove("a")
    assert house.announced == []
    assert house.remove("a").before == 1
    assert [each.key for each in house.announced] == ["a"]
