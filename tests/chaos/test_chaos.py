"""Everything at once: workers are killed, servers are killed, poison is planted, and nothing is lost or doubled.

`uv run pytest -m chaos --chaos-seed 3` does what follows from a seed: what is planted, the order of what is killed, and
how long each waits. `-s` shows it as it goes. `docs/decisions.md` says why Cassandra is spared kill -9.
"""

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from feast import FeatureStore
from kafka import KafkaConsumer, TopicPartition

from embark.repo import write_repo
from embark.servers import LocalServers
from encoders.client import memory_vector
from encoders.spec import EncoderSpec
from feature_repo.embeddings import embedding_id
from feature_repo.offline_store import parts_folder
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.session import connect
from feature_repo.views import encoder_specs, feast_objects
from materializer.dead_letter import read_dead_letters
from materializer.messages import EmbedRequest
from materializer.process import create_topics, open_consumer, open_producer, topics_of
from tests.chaos.requests import SPECS, Message, Plan, plan
from tests.chaos.worker import POINTS, Crew

WORKERS = 3
REQUESTS = 20_000
AIMED = ["commit"] * 4 + ["history"] + ["marks"]
BLIND = ["kill"] * 4
OUTAGES = ["kafka-1", "cassandra-1"]
SECONDS = 120.0  # until what is waited for counts as lost
CHUNK = 2000  # keys to a read


class Chaos:
    """One run: a project of its own on the servers, three workers, and what is done to them."""

    def __init__(self, servers: LocalServers, folder: Path, seed: int) -> None:
        self.servers = servers
        self.random = Random(seed)  # noqa: S311 - to be repeated
        self.repo = folder / "repo"
        write_repo(
            self.repo,
            project=f"c{uuid.uuid4().hex[:8]}",
            kafka=servers.kafka_bootstrap,
            cassandra_hosts=servers.cassandra_hosts,
            cassandra_port=servers.cassandra_port,
        )
        self.store = FeatureStore(repo_path=str(self.repo))
        connect(self.store)
        declared = feast_objects(list(SPECS.values()), {}, kafka=servers.kafka_bootstrap, repo=self.repo)
        self.store.apply(list(declared.values()))
        self.specs = encoder_specs(self.store)
        self.kafka, self.topics = topics_of(self.store)
        create_topics(self.kafka, self.topics)
        self.crew = Crew(self.repo, folder, WORKERS)

    def close(self) -> None:
        self.crew.end()
        connect(self.store).cluster.shutdown()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline:
                logs = "\n\n".join(self.crew.log(slot) for slot in range(WORKERS))
                raise AssertionError(f"waited in vain: {what}\n{logs}")
            time.sleep(0.02)

    def send(self, wave: Sequence[Message]) -> None:
        topics = {"live": self.topics.live, "bulk": self.topics.bulk}
        with closing(open_producer(self.kafka)) as producer:
            sent = [producer.send(topics[each.priority], each.value, each.key) for each in wave]
            producer.flush()
            for future in sent:
                future.get(timeout=SECONDS)

    def strike(self, what: str) -> None:
        """Does one thing to a group that is at work."""
        before = self.crew.writes
        if what in POINTS:
            self.crew.fuses.light(what)
            self.until(lambda: not self.crew.fuses.burns(what), f"nobody came by {what!r}")
        else:
            self.until(lambda: self.crew.writes > before, f"nothing is written before {what!r}")
            time.sleep(self.random.uniform(0.0, 0.5))
            if what in OUTAGES:
                self.restart(what)
                return
            self.crew.kill(self.random.randrange(WORKERS))
        self.until(lambda: not self.crew.all_live, f"no worker died by {what!r}")
        self.crew.revive()

    def restart(self, server: str) -> None:
        """kill -9 of Kafka, an orderly end of Cassandra; it comes back a little later.

        A Cassandra that is killed forgets up to 0.1 s of what it has acknowledged: its commit log is periodic. A
        cluster has replicas for that; one node alone would lose rows that KFC had every reason to commit.
        """
        found = self.servers.process(server)
        process = found.process()
        assert process is not None
        if server.startswith("kafka"):
            os.kill(process.pid, signal.SIGKILL)
            process.wait(SECONDS)
        else:
            found.stop()
        time.sleep(self.random.uniform(0.0, 3.0))
        self.servers.up()

    def lag(self) -> dict[str, int]:
        """Requests that are not committed, by topic."""
        lags = dict.fromkeys((self.topics.live, self.topics.bulk, self.topics.retry), 0)
        with closing(open_consumer(self.kafka, self.topics)) as consumer:
            partitions = [TopicPartition(topic, p) for topic in lags for p in consumer.partitions_for_topic(topic)]
            for partition, end in consumer.end_offsets(partitions).items():
                lags[partition.topic] += end - (consumer.committed(partition) or 0)
        return lags


@pytest.fixture
def chaos(servers: LocalServers, tmp_path: Path, seed: int) -> Iterator[Chaos]:
    made = Chaos(servers, tmp_path, seed)
    yield made
    made.close()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_nothing_is_lost_or_doubled_whatever_is_killed(chaos: Chaos, seed: int) -> None:
    print(f"seed {seed}: `uv run pytest -m chaos --chaos-seed {seed}` does the same again")
    began = time.monotonic()
    strikes = [*AIMED, *BLIND, *OUTAGES]
    chaos.random.shuffle(strikes)
    planned = plan(chaos.random, REQUESTS, len(strikes))
    chaos.until(lambda: chaos.crew.at_work, "a worker starts")
    for wave, what in zip(planned.waves, strikes, strict=True):
        if what in OUTAGES:  # one that starts without servers would give up, and leave it to whoever started it
            chaos.until(lambda: chaos.crew.at_work, "a worker starts again")
        chaos.send(wave)
        chaos.strike(what)
        print(f"{pd.Timestamp.now(tz='UTC'):%H:%M:%S.%f} {time.monotonic() - began:6.1f} s  {what}", flush=True)
    chaos.until(lambda: not any(chaos.lag().values()), f"the lag becomes 0, not {chaos.lag()}")
    print(f"{time.monotonic() - began:6.1f} s  lag 0", flush=True)
    assert chaos.crew.drain(SECONDS) == [0] * WORKERS
    assert chaos.crew.killed == len(AIMED) + len(BLIND)

    assert chaos.lag() == {chaos.topics.live: 0, chaos.topics.bulk: 0, chaos.topics.retry: 0}
    check_dead_letters(chaos, planned)
    for view, spec in chaos.specs.items():
        asked = [request for request in planned.good if request.view == view]
        check_online(chaos, spec, asked)
        again = check_history(chaos, spec, asked)
        print(f"{view}: {len(asked)} keys, {again} rows written again by replays")
    print(f"{time.monotonic() - began:6.1f} s  all checked")


def check_dead_letters(chaos: Chaos, planned: Plan) -> None:
    with closing(KafkaConsumer(bootstrap_servers=chaos.kafka)) as consumer:
        letters = read_dead_letters(consumer, chaos.topics)
    found = Counter((letter.reason, letter.value) for letter in letters)
    assert found == Counter((message.reason, message.value) for message in planned.poison)


def check_online(chaos: Chaos, spec: EncoderSpec, asked: Sequence[EmbedRequest]) -> None:
    rows = FeastOnlineRows(chaos.store)
    for start in range(0, len(asked), CHUNK):
        part = asked[start : start + CHUNK]
        found = rows.read(spec, [request.key for request in part])
        vectors = np.stack([memory_vector(request.key, spec.dim) for request in part])
        assert found.found.all(), lost(
            chaos, spec, [r.key for r, is_there in zip(part, found.found, strict=True) if not is_there]
        )
        assert np.array_equal(found.vectors, vectors)
        assert found.event_time.tolist() == [request.requested_at for request in part]
        assert found.embedding_id.tolist() == [
            embedding_id(spec.view, request.key, request.requested_at, vector)
            for request, vector in zip(part, vectors, strict=True)
        ]


def lost(chaos: Chaos, spec: EncoderSpec, keys: Sequence[str]) -> str:
    """What history knows of keys that are not online: when they were embedded."""
    parts = ds.dataset(parts_folder(chaos.store.get_feature_view(spec.view)))
    rows = parts.to_table(columns=[spec.join_key, "created_timestamp"], filter=ds.field(spec.join_key).isin(list(keys)))
    return f"{len(keys)} keys of {spec.view} are not online, in history they are:\n{rows.to_pandas()}"


def check_history(chaos: Chaos, spec: EncoderSpec, asked: Sequence[EmbedRequest]) -> int:
    """That readers see one row a request, and no other; how many more there are in the parts."""
    keys = [request.key for request in asked]
    expected = {(request.key, request.requested_at) for request in asked}
    # as a reader sees it: one row each, at the very moment of its event and now
    for moments in ([request.requested_at for request in asked], [time.time_ns() // 1000] * len(asked)):
        frame = pd.DataFrame({spec.join_key: keys, "event_timestamp": pd.to_datetime(moments, unit="us", utc=True)})
        features = [f"{spec.view}:embedding", f"{spec.view}:embedding_id"]
        seen = chaos.store.get_historical_features(frame, features).to_arrow()
        assert sorted(seen[spec.join_key].to_pylist()) == sorted(keys)
        vectors = np.stack([memory_vector(key, spec.dim) for key in seen[spec.join_key].to_pylist()])
        assert np.array_equal(np.stack(seen["embedding"].to_numpy()).astype(np.float32), vectors)
    # in the parts: what was written again is the same event with the same embedding
    parts = parts_folder(chaos.store.get_feature_view(spec.view))
    table = ds.dataset(parts).to_table(columns=[spec.join_key, "event_timestamp", "embedding_id"])
    times = table["event_timestamp"].cast("int64").to_pylist()
    rows = list(zip(table[spec.join_key].to_pylist(), times, table["embedding_id"].to_pylist(), strict=True))
    assert {(key, at) for key, at, _ in rows} == expected
    assert len(set(rows)) == len(expected)
    return len(rows) - len(expected)
