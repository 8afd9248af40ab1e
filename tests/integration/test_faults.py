"""Real processes, really killed: nothing that was acknowledged disappears, and an outage is no miss."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kafka import KafkaConsumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from embark.child_process import ChildProcess
from embark.repo import open_store, write_repo
from embark.servers import LocalServers, free_port
from embark.settings import Settings
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status
from feature_repo.offline_store import parts_folder
from feature_repo.session import connect
from feature_repo.views import feast_objects, request_topic
from serving.client import Answer, ClientError, EmbArkClient

pytestmark = pytest.mark.chaos

TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=64, network="text_lstm", weights="seeded:0")
PATIENCE = 90.0


class System:
    """Servers and the three parts, each of which a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        self.servers = LocalServers(
            state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port(), keyspace="embark"
        )
        self.settings = Settings(
            repo=folder / "repo",
            embark_address=f"127.0.0.1:{free_port()}",
            retina_address=f"127.0.0.1:{free_port()}",
            kfc_metrics=f"127.0.0.1:{free_port()}",
            state=folder / "state",
            lookup_budget_ms=9_000,  # a busy machine is slow, and no outage
        )
        self.folder = folder
        self.stack = ExitStack()

    def __enter__(self) -> "System":
        self.stack.callback(self.servers.down)
        self.servers.up()
        write_repo(self.settings.repo, kafka=self.servers.kafka_bootstrap, cassandra_port=self.servers.cassandra_port)
        self.store = open_store(self.settings.repo)
        kafka = self.servers.kafka_bootstrap
        connect(self.store)
        self.store.apply(list(feast_objects([TEXT], {}, kafka=kafka, repo=self.settings.repo).values()))
        self.store._get_provider().online_store._cluster.shutdown()
        self.client = self.stack.enter_context(EmbArkClient(self.settings.embark_address))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def start(self, part: str) -> ChildProcess:
        log = self.folder / f"{part}.txt"
        return self.stack.enter_context(ChildProcess(part, [part], self.settings.as_environment(), log))

    def lookup(self, keys: Sequence[str]) -> Answer:
        return self.client.lookup(TEXT.view, keys)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, what
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            self.lookup([])
        except ClientError:
            return False
        return True

    def all_hits(self, keys: Sequence[str]) -> bool:
        return bool((self.lookup(keys).status == Status.HIT).all())

    def told(self, name: str) -> float | None:
        """The sum of a metric of KFC's over its labels; None while nobody tells it."""
        try:
            with urllib.request.urlopen(f"http://{self.settings.kfc_metrics}/metrics", timeout=PATIENCE) as answer:
                families = text_string_to_metric_families(answer.read().decode())
        except OSError:
            return None
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def requests_published(self) -> int:
        """How many requests have ever been put on the live topic."""
        servers, topic = request_topic(self.store)
        consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
        try:
            partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
            return sum(consumer.end_offsets(partitions).values())
        finally:
            consumer.close()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with System(tmp_path) as system:
        yield system


def killed(process: ChildProcess) -> None:
    """kill -9."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    while process.running:
        time.sleep(0.01)


@pytest.mark.servers
def test_a_kfc_that_is_killed_again_and_again_loses_no_request_and_shows_no_double(system: System) -> None:
    for part in ("retina", "serve"):
        system.start(part)
    kfc = system.start("materialize")
    system.until(system.answers, "EmbArk does not answer")
    keys = [f"a title, number {i}" for i in range(600)]
    assert set(system.lookup(keys).status) == {Status.OOV}
    parts = parts_folder(system.store.get_feature_view(TEXT.view))
    assert parts is not None
    for kill in range(3):  # each time at work: between one part of history and the next
        seen = len(list(parts.glob("*.parquet")))
        system.until(lambda seen=seen: len(list(parts.glob("*.parquet"))) > seen, f"nothing is embedded, {kill}")
        killed(kfc)
        kfc = system.start("materialize")
    system.until(lambda: system.all_hits(keys), "a request was lost")
    system.until(lambda: system.told("kfc_lag_requests") == 0.0, "something is not committed")
    assert (system.told("kfc_archived_total") or 0) > 0  # by the worker that was left
    assert system.told("kfc_miss_to_hit_seconds_count") == system.told("kfc_archived_total")
    assert system.told("kfc_stalled") == 0.0
    assert kfc.stop() == 0  # SIGTERM: it finishes what it has at hand

    served = system.lookup(keys)
    now = [pd.Timestamp.now(tz="UTC").floor("us")] * len(keys)
    job = system.store.get_historical_features(
        pd.DataFrame({"text": keys, "event_timestamp": now}), [f"{TEXT.view}:embedding", f"{TEXT.view}:embedding_id"]
    )
    history = job.to_df().set_index("text")
    assert len(history) == len(keys)  # one visible row a key, however often it was written
    assert np.array_equal(np.stack(history.loc[keys, "embedding"].to_list()).astype(np.float32), served.vectors)
    assert history.loc[keys, "embedding_id"].tolist() == served.embedding_id.tolist()


@pytest.mark.servers
def test_an_outage_of_a_server_is_no_miss_and_passes_by_itself(system: System) -> None:
    for part in ("retina", "materialize", "serve"):
        system.start(part)
    system.until(system.answers, "EmbArk does not answer")
    known, unknown = ["a cat", "a dog"], ["a bird"]
    system.lookup(known)
    system.until(lambda: system.all_hits(known), "nothing is embedded")
    published = system.requests_published()

    # Cassandra away: what is hot is served, the rest is UNAVAILABLE, and nothing is asked for
    system.servers.process("cassandra-1").stop()
    assert system.lookup(known + unknown).status.tolist() == [Status.HIT, Status.HIT, Status.UNAVAILABLE]
    assert system.requests_published() == published
    system.servers.up()
    system.until(lambda: system.lookup(["a fish"]).status[0] != Status.UNAVAILABLE, "Cassandra is not found again")

    # Kafka away: hits stay hits, misses are answered at once, and are asked for when it is back
    system.servers.process("kafka-1").stop()
    start = time.monotonic()
    assert system.lookup(known + unknown).status.tolist() == [Status.HIT, Status.HIT, Status.OOV]
    assert time.monotonic() - start < 5
    system.servers.up()
    system.until(lambda: system.all_hits(known + unknown), "what was missed during the outage was not embedded")
