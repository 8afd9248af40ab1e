"""Claim: KFC archives 0.6 of the embeddings that the driver alone can write, 20 times those of a naive loop, and keeps
an encoder 0.8 as busy as the encoder is by itself.

    uv run python -m benchmarks.materialize [--json] [--fast] [--check]

Ours: one worker of KFC with an encoder that does nothing, from requests that wait in Kafka to commits, history and
online store included, from its first record to its last commit.
The peer: what one writes first: poll one message, `FeatureStore.push` one row with Feast's stock stores, commit.
The limit: the driver inserting as many rows, at its best of several numbers of rows in flight, into a table that
cannot tell which write is the last; nothing else, no Kafka, no history.
All have 100,000 rows of history before. Then the same worker with MobileNetV3-small on pictures in memory, beside what
the network and its decoding embed alone, in the same process on the same cores.
Ways are interleaved in one run, on one real Kafka and one real Cassandra, after rounds that are not counted: Java goes
on compiling for some 200,000 rows. What was archived is read back. Eight minutes, or less than one with --fast.
"""

import asyncio
import io
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field, FileSource, PushSource
from feast.data_format import ParquetFormat
from feast.data_source import PushMode
from feast.types import Array, Float32, String
from feast.value_type import ValueType
from kafka import KafkaAdminClient
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.comparison import DRIVER, Embedded, OnlineCluster, WrongAnswer, options, publish, running, take_turns
from benchmarks.online_write import IN_FLIGHT, PlainTable, Round, Way
from embark.planning.part_rates import AtOnce
from encoders.batching import Batches
from encoders.client import Encoded, Outcome
from encoders.encoder import Encoder
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.failures import CassandraFailureMarks
from feature_repo.offline_store import ensure_readable
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.views import CREATED_TIME, EVENT_TIME, encoder_specs, feature_view
from materializer.archive import EmbeddedBatch, FeastArchive
from materializer.embedding import Retina
from materializer.messages import EmbedRequest, Topics, ensure_topics
from materializer.process import open_consumer, open_producer
from materializer.worker import Worker

DIM = 512
OF_DRIVER, TIMES_NAIVE, OF_ENCODER = 0.6, 20.0, 0.8
NOTHING = EncoderSpec(
    name="nothing", version="v1", modality="text", dim=DIM, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
MOBILE = EncoderSpec(
    name="mobile",
    version="v1",
    modality="image",
    dim=576,
    network="torchvision:mobilenet_v3_small",
    weights="seeded:0",
    pinned="seeded:0",
)
KFC_WAY, NAIVE_WAY, ALONE_WAY, FED_WAY = (
    "ours, an encoder that does nothing",
    "naive: one message, one push, one commit",
    "MobileNetV3-small alone",
    "ours, MobileNetV3-small",
)
PICTURES, PICTURE_SIZE = 32, (400, 300)
SAMPLE = 20
PARTS_OF = 500  # rows of a part of the history that is there before


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    warm_up: int  # rounds before, in which Cassandra and Kafka compile what they run
    requests: int
    history: int
    naive: int
    pictures: int


FULL = Size(rounds=7, warm_up=12, requests=10_000, history=100_000, naive=5, pictures=2000)
FAST = Size(rounds=1, warm_up=1, requests=1500, history=5000, naive=2, pictures=48)
WARM_UP = 1


def no_op(dim: int, most: int) -> AtOnce:
    """The same vectors for each batch of a size."""
    return AtOnce(np.random.default_rng(0).standard_normal((most, dim), dtype=np.float32))


class PicturesInMemory:
    """What stands in for the network: each URL's bytes are one of a few photographs."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._files = []
        for _ in range(PICTURES):
            small = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            file = io.BytesIO()
            small.resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            self._files.append(file.getvalue())

    async def fetch(self, url: str) -> bytes:
        return self._files[hash(url) % PICTURES]


class InProcess:
    """Retina's batches of an encoder, without its gRPC."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._batches = Batches(PicturesInMemory())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="retina")
        self._thread.start()

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        embedding = asyncio.run_coroutine_threadsafe(self._batches.embed(self._encoder, keys), self._loop)
        embedded = embedding.result(timeout)
        vectors = [embedded[key].vector for key in keys]
        if any(vector is None for vector in vectors):
            raise WrongAnswer("a picture was not embedded")
        outcomes = tuple(Outcome(content_hash=embedded[key].content_hash) for key in keys)
        return Encoded(vectors=np.stack(vectors), outcomes=outcomes, fingerprint=fingerprint)  # type: ignore[arg-type]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._batches.close()


class TimedConsumer:
    """A consumer that notes when its first record came and when all were committed, and then ends its worker."""

    def __init__(self, consumer: Any, count: int, stop: threading.Event) -> None:
        self._consumer = consumer
        self._count = count
        self._stop = stop
        self._committed: dict[Any, int] = {}
        self.began = 0.0
        self.ended = 0.0

    def poll(self, **arguments: Any) -> Any:
        polled = self._consumer.poll(**arguments)
        if polled and not self.began:
            self.began = time.perf_counter()
        return polled

    def commit(self, offsets: Any, timeout_ms: int) -> None:
        self._consumer.commit(offsets, timeout_ms=timeout_ms)
        self._note(offsets)

    def commit_async(self, offsets: Any, callback: Callable[[Any, Any], None]) -> object:
        def ended(offsets: Any, answer: Any) -> None:
            callback(offsets, answer)
            if not isinstance(answer, BaseException):
                self._note(offsets)

        return self._consumer.commit_async(offsets, callback=ended)

    def _note(self, offsets: Any) -> None:
        self._committed |= {partition: each.offset for partition, each in offsets.items()}
        if sum(self._committed.values()) == self._count:
            self.ended = time.perf_counter()
            self._stop.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


@dataclass(slots=True)
class Bench:
    """A feature store with two encoders on running servers."""

    cluster: OnlineCluster
    folder: Path
    specs: dict[str, EncoderSpec] = field(init=False)

    def __post_init__(self) -> None:
        store = self.cluster.ours
        for spec in (NOTHING, MOBILE):
            entity = Entity(name=spec.modality, join_keys=[spec.join_key], value_type=ValueType.STRING)
            view = feature_view(spec, entity, self.folder)
            ensure_readable(view)
            store.apply([entity, view])
        self.specs = encoder_specs(store)

    def remember(self, rows: int) -> None:
        """Writes `rows` embeddings of before into history."""
        archive = FeastArchive(self.cluster.ours, FeastOnlineRows(self.cluster.ours))
        retina = no_op(DIM, PARTS_OF)
        for start in range(0, rows, PARTS_OF):
            archive.append_history(
                self.specs[NOTHING.view],
                EmbeddedBatch.of(
                    NOTHING.view,
                    keys=[f"before {i}" for i in range(start, start + PARTS_OF)],
                    vectors=retina.vectors,
                    event_time=np.arange(start, start + PARTS_OF, dtype=np.int64),
                    content_hash=("00" * 16,) * PARTS_OF,
                    created_at=start,
                ),
            )

    def history_rows(self, view: str) -> int:
        return int(ds.dataset(self.folder / "data" / "history" / view).count_rows())

    @contextmanager
    def asked(self, view: str, keys: Sequence[str]) -> Iterator[Topics]:
        """Topics of their own, in which the requests wait."""
        servers = self.cluster.servers.kafka_bootstrap
        topics = Topics(live=f"requests.{uuid.uuid4().hex[:8]}")
        with closing(KafkaAdminClient(bootstrap_servers=servers)) as admin:
            ensure_topics(admin, topics)
        with closing(open_producer(servers)) as producer:
            now = time.time_ns() // 1000
            for key in keys:
                request = EmbedRequest(view=view, key=key, requested_at=now)
                producer.send(topics.live, request.encode(), request.partition_key)
            producer.flush()
        yield topics

    def kfc(self, topics: Topics, count: int, retina: Retina) -> float:
        """Seconds in which a worker archives all that was asked for."""
        store, servers, stop = self.cluster.ours, self.cluster.servers.kafka_bootstrap, threading.Event()
        consumer = TimedConsumer(open_consumer(servers, topics), count, stop)
        with closing(open_producer(servers)) as producer:
            Worker(
                consumer=consumer,
                producer=producer,
                retina=retina,
                archive=FeastArchive(store, FeastOnlineRows(store)),
                marks=CassandraFailureMarks.of(store),
                directory=EncoderDirectory(lambda: self.specs),
                topics=topics,
            ).run(stop)
        return consumer.ended - consumer.began

    def check(self, view: str, keys: Sequence[str], history_before: int) -> None:
        """Raises WrongAnswer unless all keys are online and each is one row of history."""
        found = FeastOnlineRows(self.cluster.ours).read(self.specs[view], keys)
        if not found.found.all() or not found.vectors[:SAMPLE].any(axis=1).all():
            raise WrongAnswer(f"{view}: {int((~found.found).sum())} of {len(keys)} keys are not online")
        if (rows := self.history_rows(view) - history_before) != len(keys):
            raise WrongAnswer(f"{view}: {rows} rows of history for {len(keys)} keys")


class Naive:
    """A loop as one writes it first, with Feast's stock stores: Cassandra and duckdb on one parquet file."""

    def __init__(self, bench: Bench, rows: int) -> None:
        self._bench = bench
        self._store = bench.cluster.stock
        path = bench.folder / "naive.parquet"
        source = FileSource(
            name="naive__history",
            path=str(path),
            file_format=ParquetFormat(),
            timestamp_field=EVENT_TIME,
            created_timestamp_column=CREATED_TIME,
        )
        entity = Entity(name="text", join_keys=["text"], value_type=ValueType.STRING)
        fields = [Field(name="text", dtype=String), Field(name="embedding", dtype=Array(Float32))]
        self._view = FeatureView(
            name="naive",
            entities=[entity],
            schema=fields,
            source=PushSource(name="naive__push", batch_source=source),
            ttl=timedelta(0),
        )
        vectors = no_op(DIM, PARTS_OF).vectors
        with pq.ParquetWriter(path, self._table(["x"], vectors[:1]).schema) as writer:
            for start in range(0, rows, PARTS_OF):
                writer.write_table(self._table([f"before {i}" for i in range(start, start + PARTS_OF)], vectors))
        self._store.apply([entity, self._view])

    @staticmethod
    def _table(keys: Sequence[str], vectors: NDArray[np.float32]) -> pa.Table:
        now = pd.DatetimeIndex([datetime.now(UTC)] * len(keys)).as_unit("us")
        frame = {"text": list(keys), "embedding": list(vectors), EVENT_TIME: now, CREATED_TIME: now}
        return pa.Table.from_pandas(pd.DataFrame(frame), preserve_index=False)

    def __call__(self, topics: Topics, count: int) -> float:
        """Seconds for `count` messages."""
        retina, began = no_op(DIM, 1), 0.0
        consumer = open_consumer(self._bench.cluster.servers.kafka_bootstrap, topics)
        consumer.subscribe(topics=[topics.live])
        with closing(consumer):
            for _ in range(count):
                while not (polled := consumer.poll(timeout_ms=500, max_records=1)):
                    pass
                began = began or time.perf_counter()
                ((record,),) = polled.values()
                request = EmbedRequest.decode(record.value)
                encoded = retina.encode(request.view, "", [request.key], 1.0)
                frame = self._table([request.key], encoded.vectors).to_pandas()
                self._store.push("naive__push", frame, to=PushMode.ONLINE_AND_OFFLINE)
                consumer.commit()
            return time.perf_counter() - began


def archived(bench: Bench, size: Size, session: Any) -> dict[str, list[float]]:
    """Embeddings a second of KFC, of the naive loop and of the driver."""
    table, retina = PlainTable(session, DIM), no_op(DIM, size.requests)
    ways: dict[str, Way] = {f"driver, {n} in flight": table.way(n) for n in IN_FLIGHT}
    found: dict[str, list[float]] = {name: [] for name in (KFC_WAY, *ways)}
    shuffle = random.Random(0)  # noqa: S311 - an order, not a secret
    naive = Naive(bench, size.history)
    for i in _tracked(size.rounds + size.warm_up, "an encoder that does nothing"):
        given = Round.of(Embedded.seeded(f"driver {i}", size.requests, DIM))
        keys = [f"round {i}, item {n}" for n in range(size.requests)]
        before = bench.history_rows(NOTHING.view)
        seconds: dict[str, float] = {}
        with bench.asked(NOTHING.view, keys) as topics:

            def kfc(topics: Topics = topics, seconds: dict[str, float] = seconds) -> None:
                seconds[KFC_WAY] = bench.kfc(topics, size.requests, retina)

            turns: dict[str, Callable[[], None]] = {KFC_WAY: kfc}
            for name, way in ways.items():
                turns[name] = partial(way.write, given)
            took = take_turns(turns, lambda name, outcome: None, shuffle) | seconds
        bench.check(NOTHING.view, keys, before)
        if i >= size.warm_up:
            found[KFC_WAY].append(size.requests / took[KFC_WAY])
            for name in ways:
                found[name].append(len(given.embedded.keys) / took[name])
    keys = [f"naive {n}" for n in range(size.naive + WARM_UP)]
    with bench.asked(NOTHING.view, keys) as topics:
        naive(topics, WARM_UP)
        found[NAIVE_WAY] = [size.naive / naive(topics, size.naive)]
    return found


def embedded(bench: Bench, size: Size) -> dict[str, list[float]]:
    """Pictures a second of a network alone and under KFC."""
    found: dict[str, list[float]] = {ALONE_WAY: [], FED_WAY: []}
    shuffle = random.Random(0)  # noqa: S311 - an order, not a secret
    with closing(InProcess(load_encoder(MOBILE, "cpu"))) as retina:
        for i in _tracked(size.rounds + WARM_UP, "MobileNetV3-small"):
            count = size.pictures if i >= WARM_UP else PICTURES
            keys = [f"https://example.com/{i}/{n}.jpg" for n in range(count)]
            before, seconds = bench.history_rows(MOBILE.view), dict[str, float]()
            with bench.asked(MOBILE.view, keys) as topics:

                def fed(topics: Topics = topics, count: int = count, seconds: dict[str, float] = seconds) -> None:
                    seconds[FED_WAY] = bench.kfc(topics, count, retina)

                alone = lambda keys=keys: retina.encode(MOBILE.view, "", keys, 600.0)  # noqa: E731
                took = take_turns({ALONE_WAY: alone, FED_WAY: fed}, lambda name, outcome: None, shuffle) | seconds
            bench.check(MOBILE.view, keys, before)
            if i >= WARM_UP:
                for name, speeds in found.items():
                    speeds.append(count / took[name])
    return found


def _tracked(rounds: int, shown: str) -> Any:
    return track(range(rounds), description=shown, console=Console(stderr=True), transient=True)


def compared(found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each way: embeddings a second, and how many times those of its limit and of the naive loop."""
    medians = {name: float(np.median(speeds)) for name, speeds in found.items()}
    driver = max((name for name in medians if name.startswith(DRIVER)), key=lambda name: medians[name])
    limits = {FED_WAY: ALONE_WAY, ALONE_WAY: ALONE_WAY}
    return [
        {
            "way": f"{name} (best)" if name == driver else name,
            "rounds": len(found[name]),
            "per_s": round(median, 2 if median < 10 else 0),
            "slowest": round(min(found[name]), 1),
            "fastest": round(max(found[name]), 1),
            "times_limit": round(median / medians[limits.get(name, driver)], 4 if name == NAIVE_WAY else 2),
            "times_naive": None if name in limits else round(median / medians[NAIVE_WAY], 1),
        }
        for name, median in medians.items()
    ]


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """What is claimed → whether it holds."""
    at = {row["way"]: row for row in rows}
    kfc, fed = at[KFC_WAY], at[FED_WAY]
    return {
        f"KFC archives {kfc['times_limit']} of what the driver writes, {OF_DRIVER} claimed": kfc["times_limit"]
        >= OF_DRIVER,
        f"KFC archives {kfc['times_naive']} times a naive loop, {TIMES_NAIVE} claimed": kfc["times_naive"]
        >= TIMES_NAIVE,
        f"KFC embeds {fed['times_limit']} of the encoder alone, {OF_ENCODER} claimed": fed["times_limit"] >= OF_ENCODER,
    }


def main() -> None:
    given = options(__doc__)
    size = FAST if given.fast else FULL
    with tempfile.TemporaryDirectory() as folder, running([]) as cluster, cluster.driver() as session:
        bench = Bench(cluster, Path(folder))
        bench.remember(size.history)
        rows = compared(archived(bench, size, session) | embedded(bench, size))
    publish("Embeddings archived", rows, claims(rows), given)


if __name__ == "__main__":
    main()
