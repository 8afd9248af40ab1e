"""KFC on real Kafka and Cassandra, with a real feature repo; only Retina is in memory."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from feast import FeatureStore
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from embark.servers import LocalServers
from encoders.client import Encoded, MemoryRetina, Outcome
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Embeddings
from feature_repo.failures import CassandraFailureMarks
from feature_repo.offline_store import parts_folder
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.session import StoreUnavailable, connect
from feature_repo.views import encoder_specs, request_topic
from materializer.archive import EmbeddedBatch, FeastArchive
from materializer.consumer import ResumingConsumer
from materializer.dead_letter import read_dead_letters
from materializer.embedding import Retina
from materializer.messages import EmbedRequest, Topics, ensure_topics
from materializer.process import dead_letters, open_consumer, open_producer, run_worker
from materializer.worker import Limits, Worker
from tests.materializer.fakes import ScriptedRetina, told_by_kfc

pytestmark = pytest.mark.servers

VIEW = "text_lstm__v1"
SECONDS = 60.0  # until what is waited for counts as lost
TIMEOUT = Outcome(reason="Timeout", detail="slow", retryable=True)
NOT_FOUND = Outcome(reason="NotFound", detail="404")


class Crash(Exception):
    """The process dies here."""


class CrashingArchive(FeastArchive):
    """Dies once, between history and online."""

    crashed = False

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        if not self.crashed:
            self.crashed = True
            raise Crash
        super().write_online(spec, batch)


class SlowRetina(ScriptedRetina):
    """Takes its time until it is told to hurry, so that a rebalance falls into a batch."""

    hurry = False

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        if not self.hurry:
            time.sleep(0.3)
        return super().encode(view, fingerprint, keys, timeout)


class Bench:
    """One project on the servers, and topics of its own."""

    def __init__(self, servers: LocalServers, repo: Path) -> None:
        self.repo = repo
        self.kafka = servers.kafka_bootstrap
        self.topics = Topics(live=f"requests.{uuid.uuid4().hex[:8]}")
        self.stores: list[FeatureStore] = []
        self.store = self.open_store()
        self.specs = encoder_specs(self.store)
        with closing(KafkaAdminClient(bootstrap_servers=self.kafka)) as admin:
            ensure_topics(admin, self.topics)

    def open_store(self) -> FeatureStore:
        self.stores.append(FeatureStore(repo_path=str(self.repo)))
        return self.stores[-1]

    def directory(self) -> EncoderDirectory:
        store = self.open_store()
        return EncoderDirectory(lambda: encoder_specs(store, allow_cache=False))

    def send(self, messages: Sequence[tuple[bytes, bytes]], topic: str) -> None:
        with closing(open_producer(self.kafka)) as producer:
            sent = [producer.send(topic, value, key) for key, value in messages]
            producer.flush()
            for future in sent:
                future.get(timeout=SECONDS)

    def ask(self, keys: Sequence[str], topic: str = "", **fields: Any) -> None:
        requests = [EmbedRequest(view=VIEW, key=key, **{"requested_at": _now()} | fields) for key in keys]
        self.send([(r.partition_key, r.encode()) for r in requests], topic or self.topics.live)

    @contextmanager
    def working(
        self,
        retina: Retina,
        archive: Callable[[FeatureStore, FeastOnlineRows], FeastArchive] = FeastArchive,
        limits: Limits | None = None,
    ) -> Iterator[threading.Event]:
        """A worker in a thread, until the block is left; what it dies of is raised there."""
        store = self.open_store()
        with ExitStack() as stack:
            producer = stack.enter_context(closing(open_producer(self.kafka)))
            worker = Worker(
                consumer=open_consumer(self.kafka, self.topics),
                producer=producer,
                retina=retina,
                archive=archive(store, FeastOnlineRows(store)),
                marks=self.marks(store),
                directory=stack.enter_context(self.directory()),
                topics=self.topics,
                limits=limits,
                delay=lambda attempt: 1.0,
            )
            with in_thread(worker.run) as stop:
                yield stop

    def retina(self, failures: Mapping[str, Outcome] | None = None) -> MemoryRetina:
        return MemoryRetina({view: spec.dim for view, spec in self.specs.items()}, failures or {})

    def marks(self, store: FeatureStore) -> CassandraFailureMarks:
        return CassandraFailureMarks.of(store)

    def online(self, keys: Sequence[str]) -> Embeddings:
        return FeastOnlineRows(self.store).read(self.specs[VIEW], keys)

    def wait_until_online(self, keys: Sequence[str], stop: threading.Event | None = None) -> None:
        def there() -> bool:
            try:
                return bool(self.online(keys).found.all()) or bool(stop and stop.is_set())
            except StoreUnavailable:  # of a machine that is busy; it is asked again
                return False

        wait_until(there)

    def history(self, keys: Sequence[str]) -> pd.DataFrame:
        """What a reader sees a minute from now."""
        moments = pd.to_datetime([_now() + 60_000_000] * len(keys), unit="us", utc=True)
        frame = pd.DataFrame({"text": keys, "event_timestamp": moments})
        job = self.store.get_historical_features(frame, [f"{VIEW}:embedding", f"{VIEW}:embedding_id"])
        past: pd.DataFrame = job.to_df()
        return past.set_index("text").loc[list(keys)]

    def rows(self) -> list[tuple[str, int]]:
        """Key and event time (µs) of all rows in history, those written again by a replay once."""
        parts = parts_folder(self.store.get_feature_view(VIEW))
        table = ds.dataset(parts).to_table(columns=["text", "event_timestamp", "embedding_id"])
        times = table["event_timestamp"].cast("int64").to_pylist()
        rows = set(zip(table["text"].to_pylist(), times, table["embedding_id"].to_pylist(), strict=True))
        return sorted((key, at) for key, at, _ in rows)

    def lag(self) -> int:
        with closing(open_consumer(self.kafka, self.topics)) as consumer:
            names = (self.topics.live, self.topics.bulk, self.topics.retry)
            partitions = [TopicPartition(t, p) for t in names for p in consumer.partitions_for_topic(t)]
            ends = consumer.end_offsets(partitions)
            return sum(ends[p] - (consumer.committed(p) or 0) for p in partitions)


def _now() -> int:
    return time.time_ns() // 1000


@contextmanager
def in_thread(run: Callable[[threading.Event], None]) -> Iterator[threading.Event]:
    """Runs until the block is left; raises there what it died of."""
    stop = threading.Event()
    died: list[Exception] = []

    def body() -> None:
        try:
            run(stop)
        except Exception as error:  # noqa: BLE001 - raised again below
            died.append(error)
            stop.set()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(SECONDS)
        if died:
            raise died[0]
        assert not thread.is_alive()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.1)


@pytest.fixture
def bench(servers: LocalServers, feature_repo_dir: Path) -> Iterator[Bench]:
    made = Bench(servers, feature_repo_dir)
    yield made
    for store in made.stores:
        connect(store).cluster.shutdown()


def test_what_is_asked_for_is_online_and_in_history(bench: Bench) -> None:
    """The whole worker, on the topic that the registry names."""
    keys = [f"{uuid.uuid4()} {i}" for i in range(20)]
    _, live = request_topic(bench.store)
    asked_at = _now()
    store, retina = bench.open_store(), bench.retina()
    with bench.directory() as directory:

        def run(stop: threading.Event) -> None:
            run_worker(store, directory=directory, retina=retina, stop=stop)

        with in_thread(run) as stop:
            wait_until(lambda: live in _topic_names(bench.kafka) or stop.is_set())
            bench.ask(keys, topic=live, requested_at=asked_at)
            bench.wait_until_online(keys, stop)
    online, past = bench.online(keys), bench.history(keys)
    assert list(online.embedding_id) == list(past["embedding_id"])
    assert np.array_equal(online.vectors, np.stack(list(past["embedding"])).astype(np.float32))
    assert set(online.event_time) == {asked_at}
    assert [letter for letter in dead_letters(bench.store) if letter.key in keys] == []


def _topic_names(kafka: str) -> list[str]:
    with closing(KafkaAdminClient(bootstrap_servers=kafka)) as admin:
        return list(admin.list_topics())


def test_topics_are_made_once_and_left_as_they_are(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=bench.kafka)) as admin:
        assert ensure_topics(admin, bench.topics) == []
        assert told_by_kfc(caplog) == []
        with caplog.at_level(logging.WARNING):
            assert ensure_topics(admin, bench.topics, partitions=12) == []
        assert "partitions is 6, 12 is expected" in caplog.text
        (live,) = admin.describe_topics([bench.topics.live])
        assert len(live["partitions"]) == 6


def test_a_poison_message_is_a_dead_letter_and_the_rest_goes_on(bench: Bench) -> None:
    retina = bench.retina({"gone": NOT_FOUND})
    bench.send([(b"k", b"\xff no request")], bench.topics.live)
    bench.send([(b"k", b"")], bench.topics.live)
    bench.ask(["gone"], requested_at=7)
    bench.ask(["fine", "well"])
    with bench.working(retina) as stop:
        bench.wait_until_online(["fine", "well"], stop)
        wait_until(lambda: len(_letters(bench)) == 3)
    letters = {letter.reason + letter.key: letter for letter in _letters(bench)}
    assert set(letters) == {"MalformedMessage", "NotFoundgone"}
    assert b"\xff no request" in {letter.value for letter in _letters(bench)}
    assert letters["NotFoundgone"].detail == "404"
    assert letters["NotFoundgone"].requested_at == 7
    assert EmbedRequest.decode(letters["NotFoundgone"].value).key == "gone"
    assert bench.marks(bench.store).read(VIEW, ["gone", "fine"]) == {"gone": "NotFound: 404"}
    assert bench.lag() == 0


def _letters(bench: Bench) -> Any:
    with closing(KafkaConsumer(bootstrap_servers=bench.kafka)) as consumer:
        return read_dead_letters(consumer, bench.topics)


def test_a_retry_comes_back_when_it_is_due_and_keeps_its_event_time(bench: Bench) -> None:
    retina = ScriptedRetina(bench.specs)
    keys = [f"slow {i}" for i in range(10)]
    retina.outcomes = {key: [TIMEOUT, Outcome(content_hash=b"\x01" * 16)] for key in keys}
    event_time = 1_700_000_000_123_000
    bench.ask(keys, requested_at=event_time)
    with bench.working(retina) as stop:
        bench.wait_until_online(keys, stop)
    assert set(bench.online(keys).event_time) == {event_time}
    assert bench.lag() == 0


def test_a_crash_between_history_and_online_leaves_one_row_to_a_reader(bench: Bench) -> None:
    keys = ["red shoes", "blue hat"]
    bench.ask(keys)

    def until_the_crash() -> None:
        with bench.working(bench.retina(), CrashingArchive) as stop:
            wait_until(stop.is_set)

    with pytest.raises(Crash):
        until_the_crash()
    assert not bench.online(keys).found.any()
    assert bench.lag() == len(keys)
    first = bench.history(keys)
    with bench.working(bench.retina()) as stop:
        bench.wait_until_online(keys, stop)
    past = bench.history(keys)
    assert len(past) == len(keys)
    assert list(past["embedding_id"]) == list(first["embedding_id"]) == list(bench.online(keys).embedding_id)
    assert bench.lag() == 0


def test_a_partition_that_was_paused_is_read_to_its_end(bench: Bench) -> None:
    bench.ask([f"text {i}" for i in range(40)])
    partitions = [TopicPartition(bench.topics.live, p) for p in range(6)]
    read = 0
    with closing(ResumingConsumer(bootstrap_servers=bench.kafka)) as consumer:
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        for _ in range(60):
            read += sum(map(len, consumer.poll(timeout_ms=100, max_records=3).values()))
            # Each in turn, so that several are set aside at once.
            for paused in partitions:
                consumer.pause(paused)
                read += sum(map(len, consumer.poll(timeout_ms=1, max_records=1).values()))
            consumer.resume(*partitions)
            if read == 40:
                break
    assert read == 40


def test_two_workers_share_the_partitions_and_a_rebalance_during_slow_batches_loses_and_doubles_nothing(
    bench: Bench,
) -> None:
    keys, asked_at = sorted(f"text {i}" for i in range(600)), _now()
    first, second = SlowRetina(bench.specs), SlowRetina(bench.specs)
    limits = Limits(max_batch=8)
    bench.ask(keys, requested_at=asked_at)
    with ExitStack() as stack:
        with bench.working(first, limits=limits) as stop:
            wait_until(lambda: bool(first.calls) or stop.is_set())
            stack.enter_context(bench.working(second, limits=limits))
            wait_until(lambda: len(second.calls) > 2 or stop.is_set())
            first.hurry = second.hurry = True
            before = len(first.calls)
            wait_until(lambda: len(first.calls) > before or stop.is_set())  # the first goes on with its share
        bench.wait_until_online(keys)  # the second takes over what is left
    encoded = [key for call in first.calls + second.calls for key in call]
    assert set(encoded) == set(keys)
    assert second.calls
    past = bench.history(keys)
    assert len(past) == len(keys)
    assert list(past["embedding_id"]) == list(bench.online(keys).embedding_id)
    assert bench.rows() == [(key, asked_at) for key in keys]
    assert _letters(bench) == []
    assert bench.lag() == 0


class PacedRetina(MemoryRetina):
    """Embeds as fast as a small network on a CPU."""

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        time.sleep(len(keys) / 100)
        return super().encode(view, fingerprint, keys, timeout)


@pytest.mark.chaos
def test_a_look_up_overtakes_a_backfill_of_a_hundred_thousand_keys(
    bench: Bench, record_property: Callable[[str, object], None]
) -> None:
    requests = [
        EmbedRequest(view=VIEW, key=f"old title {i}", requested_at=_now(), priority="bulk") for i in range(100_000)
    ]
    bench.send([(request.partition_key, request.encode()) for request in requests], bench.topics.bulk)
    retina = PacedRetina({view: spec.dim for view, spec in bench.specs.items()}, {})
    with bench.working(retina) as stop:
        wait_until(lambda: len(retina.calls) > 10 or stop.is_set())  # it is in full swing
        waited = []
        for i in range(7):
            asked = time.monotonic()
            bench.ask([f"new title {i}"])
            bench.wait_until_online([f"new title {i}"], stop)
            waited.append(time.monotonic() - asked)
    record_property("miss to hit, s", waited)
    print(f"miss to hit: median {np.median(waited):.2f} s, at most {max(waited):.2f} s")
    assert np.median(waited) < 3.0  # a promise: the one test here that is timed
    assert sum(len(keys) for _, keys in retina.calls) < len(requests)  # it was still under way
