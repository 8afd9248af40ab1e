"""Serving and training agree: what 1,000 look-ups answered over simulated time is what history gives for them later."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Status
from feature_repo.failures import CassandraFailureMarks
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.views import encoder_specs
from materializer.archive import EmbeddedBatch, FeastArchive
from materializer.oov import set_oov
from serving.archive import EmbeddingArchive
from serving.freshness import apply
from serving.hot_caches import HotCaches
from serving.oov import OovRefresh
from serving.requests import MemoryRequests
from serving.store_reads import StoreReads
from training.history import historical_embeddings
from training.impressions import Impressions

pytestmark = pytest.mark.servers

VIEW = "text_lstm__v1"
SECOND = 1_000_000  # µs
START = 1_767_268_800 * SECOND  # 2026-01-01 12:00 UTC
TICKS, LOOKED_UP = 50, 20
KEYS = [f"title {i}" for i in range(40)]
MOST_TICKS = 4  # from history to the online store
OOV_SET = (15, 35)  # ticks
OOV_FOLLOWED = 2  # ticks later by EmbArk


@pytest.fixture
def store(feature_repo_dir: Path) -> Iterator[FeatureStore]:
    store = FeatureStore(repo_path=str(feature_repo_dir))
    with closing_session(store):
        yield store


def closing_session(store: FeatureStore) -> closing:  # type: ignore[type-arg]
    class Session:
        def close(self) -> None:
            store._get_provider().online_store._cluster.shutdown()

    return closing(Session())


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """A batch that is in history since `created` and online from `visible` on; ticks."""

    batch: EmbeddedBatch
    created: int
    visible: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """What a ranker logs of one look-up, and the vector that it got, which nobody logs."""

    key: str
    tick: int
    status: int
    embedding_id: int
    vector: NDArray[np.float32]


def embedded(draw: np.random.Generator, spec: EncoderSpec, tick: int) -> EmbeddedBatch:
    """Some keys for the first time or again; some with an event time of before, as late requests have it."""
    keys = [str(key) for key in draw.choice(KEYS[:30], size=int(draw.integers(1, 4)), replace=False)]
    ticks = tick - draw.choice([0, 0, 7], size=len(keys))
    return EmbeddedBatch.of(
        VIEW,
        keys=keys,
        vectors=draw.standard_normal((len(keys), spec.dim), dtype=np.float32),
        event_time=START + ticks * SECOND,
        content_hash=[""] * len(keys),
        created_at=START + tick * SECOND,
    )


@dataclass(frozen=True, slots=True)
class At:
    """The clock of a tick."""

    tick: int

    def now(self) -> int:
        return START + self.tick * SECOND

    def monotonic(self) -> float:
        return float(self.tick)


def live_through(store: FeatureStore) -> tuple[list[LookUp], list[OnItsWay]]:
    """Simulated time: keys are embedded, embedded again and fail, and are looked up in between, half a tick later."""
    draw = np.random.default_rng(3)
    spec = encoder_specs(store)[VIEW]
    marks = CassandraFailureMarks.of(store)
    rows, caches = FeastOnlineRows(store), HotCaches(megabytes=1, seconds=3600)
    writes = FeastArchive(store, rows)
    with closing(StoreReads(rows, marks)) as reads:
        # A busy machine is slow, and no outage.
        directory = EncoderDirectory(lambda: encoder_specs(store))
        archive = EmbeddingArchive(directory, reads, MemoryRequests(), caches, budget=60.0)
        oov = OovRefresh(directory, rows, caches)
        lived = simulated(spec, draw, writes, archive, marks, caches, oov, rows)
    assert caches.of(spec).counts.hits > LOOKED_UP  # the caches answered, too
    return lived


def simulated(
    spec: EncoderSpec,
    draw: np.random.Generator,
    writes: FeastArchive,
    archive: EmbeddingArchive,
    marks: CassandraFailureMarks,
    caches: HotCaches,
    oov: OovRefresh,
    rows: FeastOnlineRows,
) -> tuple[list[LookUp], list[OnItsWay]]:
    looked_up: list[LookUp] = []
    on_its_way: list[OnItsWay] = []
    for tick in range(TICKS):
        # 1. history first
        batch = embedded(draw, spec, tick)
        writes.append_history(spec, batch)
        on_its_way.append(OnItsWay(batch, tick, tick + int(draw.integers(MOST_TICKS))))
        # 2. online later, in any order
        for each in on_its_way:
            if each.visible == tick:
                writes.write_online(spec, each.batch)
                for announced in each.batch.announcements(VIEW):  # as the topic brings them, at once
                    apply(announced, caches)
        # 3. some cannot be embedded
        if tick % 10 == 0:
            marks.mark(VIEW, dict.fromkeys(draw.choice(KEYS[30:], size=2), "NotFound: planted"))
        # 4. the view's owner sets what is answered for what is missing
        if tick in OOV_SET:
            vector = draw.standard_normal(spec.dim, dtype=np.float32)
            set_oov(spec, vector, writes, rows, At(tick))
        if tick - OOV_FOLLOWED in OOV_SET:
            oov.refresh()
        # 5. a ranker asks, also with keys that are not canonical
        keys = [str(key) for key in draw.choice(KEYS, size=LOOKED_UP)]
        answer = archive.lookup(VIEW, [f" {key}" if i % 3 else key for i, key in enumerate(keys)])
        looked_up += [
            LookUp(key, tick, int(answer.status[i]), int(answer.embedding_id[i]), answer.vectors[i].copy())
            for i, key in enumerate(keys)
        ]
    return looked_up, on_its_way


def test_training_reads_the_very_bytes_that_serving_answered(store: FeatureStore) -> None:
    looked_up, on_its_way = live_through(store)
    assert len(looked_up) == 1000
    assert {each.status for each in looked_up} == {Status.HIT, Status.OOV, Status.FAILED}
    assert len({each.embedding_id for each in looked_up if each.status == Status.OOV}) == 1 + len(OOV_SET)
    log = Impressions.of(
        pd.DataFrame(
            {
                "event_timestamp": pd.to_datetime(
                    [START + each.tick * SECOND + SECOND // 2 for each in looked_up], unit="us", utc=True
                ),
                "text": [each.key for each in looked_up],
                f"{VIEW}__embedding_id": [each.embedding_id for each in looked_up],
            }
        )
    )
    # As logged: all of them, whatever delays were in between.
    logged = historical_embeddings(store, log, [VIEW], "as_logged")[VIEW]
    for i, each in enumerate(looked_up):
        assert logged.of(slice(i, i + 1)).tobytes() == each.vector.tobytes(), each
        assert (logged.status[i] == Status.HIT) == (each.status == Status.HIT), each
    # As served: all but those whose key, or whose OOV embedding, was in history and not answered yet.
    served = historical_embeddings(store, log, [VIEW], "as_served")[VIEW]
    equal = np.array(
        [served.of(slice(i, i + 1)).tobytes() == each.vector.tobytes() for i, each in enumerate(looked_up)]
    )
    propagating = np.array(
        [any(e.key in w.batch.keys and w.created <= e.tick < w.visible for w in on_its_way) for e in looked_up]
    )
    propagating |= [e.status != Status.HIT and any(0 <= e.tick - s < OOV_FOLLOWED for s in OOV_SET) for e in looked_up]
    assert equal[~propagating].all()
    assert not equal[propagating].all()  # a delay there was, or this would prove nothing
    assert propagating.mean() < 0.5
