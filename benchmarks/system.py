"""Real servers with archived rows behind one or several `embark serve`, for benchmarks that overload or break them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore
from feast.data_source import PushMode
from kafka import KafkaConsumer, TopicPartition

from embark.child_process import ChildProcess
from embark.repo import open_store, write_repo
from embark.servers import LocalServers, free_port
from embark.settings import Settings
from encoders.client import memory_vector
from encoders.spec import EncoderSpec
from feature_repo.online.writes import WriteFailed
from feature_repo.views import feast_objects, push_source_name, request_topic
from materializer.archive import EmbeddedBatch, table
from materializer.messages import EmbedRequest
from serving.client import EmbArkClient

SPEC = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=512, network="text_lstm", weights="seeded:0")
ROWS = 2000
TRIES = 10
KEYS = tuple(f"title {i}" for i in range(ROWS))
# That this process may use, where the system can tell.
CORES = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


@dataclass(frozen=True, slots=True)
class System:
    """Servers with KEYS online, and EmbArks over them."""

    servers: LocalServers
    store: FeatureStore
    settings: Sequence[Settings]
    folder: Path
    stack: ExitStack
    processes: dict[int, ChildProcess]  # that were started last, by their index

    @property
    def addresses(self) -> list[str]:
        return [each.embark_address for each in self.settings]

    def start(self, index: int, *, wait: bool = True) -> ChildProcess:
        """The EmbArk of an index; ready, where it is waited for."""
        settings = self.settings[index]
        log = self.folder / f"serve-{index}.txt"
        process = self.stack.enter_context(ChildProcess("serve", ["serve"], settings.as_environment(), log))
        self.processes[index] = process
        if wait:
            with EmbArkClient(settings.embark_address) as client:
                process.wait_until(lambda: client.answers(SPEC.view), 180)
        return process

    def requests_published(self) -> int:
        """How many requests have ever been put on the live topic."""
        with self._topic() as (consumer, partitions):
            return sum(consumer.end_offsets(partitions).values())

    def requests_for_archived(self) -> int:
        """How many of them were for KEYS: none is missing."""
        with self._topic() as (consumer, partitions):
            consumer.assign(partitions)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(partitions)
            archived, found = set(KEYS), 0
            while any(consumer.position(each) < end for each, end in ends.items()):
                for records in consumer.poll(1000).values():
                    found += sum(EmbedRequest.decode(record.value).key in archived for record in records)
            return found

    @contextmanager
    def _topic(self) -> Iterator[tuple[KafkaConsumer, list[TopicPartition]]]:
        servers, topic = request_topic(self.store)
        consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
        try:
            yield consumer, [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        finally:
            consumer.close()


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are begun in it run on these of CORES; on any, where none is named."""
    if not cores:
        yield
        return
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def written(store: FeatureStore, rows: pd.DataFrame) -> None:
    """Writes rows online, a few at a time and again where they time out: a busy machine is slow, and no failure."""
    for start in range(0, len(rows), 100):
        for attempt in range(TRIES):
            try:
                store.push(push_source_name(SPEC.view), rows.iloc[start : start + 100], to=PushMode.ONLINE)
                break
            except WriteFailed:
                if attempt + 1 == TRIES:
                    raise


@contextmanager
def running(folder: Path, count: int = 1, **settings: Any) -> Iterator[System]:
    """Kafka and Cassandra with KEYS online, and settings of `count` EmbArks, none of which runs yet."""
    servers = LocalServers(state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port())
    repo = folder / "repo"
    with ExitStack() as stack:
        stack.callback(servers.down)
        servers.up()
        write_repo(repo, kafka=servers.kafka_bootstrap, cassandra_port=servers.cassandra_port)
        store = open_store(repo)
        store.apply(list(feast_objects([SPEC], {}, kafka=servers.kafka_bootstrap, repo=repo).values()))
        batch = EmbeddedBatch.of(
            SPEC.view,
            keys=KEYS,
            vectors=np.stack([memory_vector(key, SPEC.dim) for key in KEYS]),
            event_time=np.full(ROWS, 1_700_000_000_000_000, dtype=np.int64),
            content_hash=("00",) * ROWS,
            created_at=1_700_000_000_000_000,
        )
        written(store, table(SPEC, batch).to_pandas())
        store._get_provider().online_store._cluster.shutdown()
        each = [
            Settings(repo=repo, state=folder / f"state-{i}", embark_address=f"127.0.0.1:{free_port()}", **settings)
            for i in range(count)
        ]
        yield System(servers, store, each, folder, stack, {})
