from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import String
from feast.value_type import ValueType

from encoders.spec import EncoderSpec
from feature_repo.embeddings import Embeddings, RowVersion, Status, all_missing, embedding_id, oov_zeros
from feature_repo.offline_store import part_schema
from feature_repo.session import StoreUnavailable
from feature_repo.views import feature_view
from materializer.archive import ArchiveUnavailable, EmbeddedBatch, FeastArchive, MemoryArchive, rows, table

SPEC = EncoderSpec(
    name="tiny", version="v1", modality="text", dim=4, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
NEWER = EncoderSpec(
    name="tiny", version="v2", modality="text", dim=3, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
NOON = 1_767_268_800_123_456  # µs since 1970: 2026-01-01 12:00:00.123456


class FeastRows:
    """Online rows of any store of Feast's, whether they are there."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        rows = all_missing(oov_zeros(spec.view, spec.dim), len(keys), Status.OOV)
        entities = [EntityKey(join_keys=[spec.join_key], entity_values=[Value(string_val=key)]) for key in keys]
        view = self.store.get_feature_view(spec.view)
        answers = self.store._get_provider().online_read(self.store.config, view, entities)
        for i, (_, values) in enumerate(answers):
            if values:
                rows.status[i] = Status.HIT
                rows.vectors[i] = values["embedding"].float_list_val.val
                rows.embedding_id[i] = values["embedding_id"].int64_val
        return rows

    def versions(self, spec: EncoderSpec, keys: Sequence[str]) -> dict[str, RowVersion]:
        rows = self.read(spec, keys)
        return {
            key: RowVersion(event_time=NOON, created_time=NOON, embedding_id=int(rows.embedding_id[i]))
            for i, key in enumerate(keys)
            if rows.found[i]
        }


class NoRows:
    """An online store that is down."""

    def versions(self, spec: EncoderSpec, keys: Sequence[str]) -> dict[str, RowVersion]:
        raise StoreUnavailable("Cassandra does not answer")


def batch(keys: Sequence[str], spec: EncoderSpec = SPEC, created_at: int = NOON + 5) -> EmbeddedBatch:
    return EmbeddedBatch.of(
        spec.view,
        keys=keys,
        vectors=np.linspace(0, 1, len(keys) * spec.dim, dtype=np.float32).reshape(len(keys), spec.dim),
        event_time=np.array([NOON + i for i in range(len(keys))], dtype=np.int64),
        content_hash=["ab" * 16 for _ in keys],
        created_at=created_at,
    )


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    (tmp_path / "feature_store.yaml").write_text(
        "project: archive\nprovider: local\n"
        "registry: {path: registry.db, cache_ttl_seconds: 600}\n"  # as good as for ever
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(tmp_path))
    apply(store, SPEC)
    return store


def apply(store: FeatureStore, spec: EncoderSpec) -> None:
    entity = Entity(name="text", join_keys=["text"], value_type=ValueType.STRING)
    store.apply([entity, feature_view(spec, entity, Path(store.repo_path))])


def history(store: FeatureStore, keys: Sequence[str], at: int) -> pd.DataFrame:
    moment = pd.to_datetime([at] * len(keys), unit="us", utc=True)
    job: RetrievalJob = store.get_historical_features(
        pd.DataFrame({"text": keys, "event_timestamp": moment}),
        [f"{SPEC.view}:{name}" for name in ("embedding", "embedding_id", "content_hash")],
    )
    past: pd.DataFrame = job.to_df()
    return past.set_index("text")


def test_a_batch_is_read_back_from_history_and_online_as_it_was_written(store: FeatureStore) -> None:
    archive, read = FeastArchive(store, FeastRows(store)), FeastRows(store)
    written = batch(["red shoes", "blue hat"])
    assert archive.archived(SPEC, written.keys) == set()
    archive.append_history(SPEC, written)
    archive.write_online(SPEC, written)
    assert archive.archived(SPEC, [*written.keys, "never"]) == set(written.keys)

    online = read.read(SPEC, written.keys)
    past = history(store, written.keys, NOON + 60_000_000).loc[list(written.keys)]
    ids = [
        embedding_id(SPEC.view, key, int(time), vector)
        for key, time, vector in zip(written.keys, written.event_time, written.vectors, strict=True)
    ]
    assert np.array_equal(online.vectors, written.vectors)
    assert list(online.embedding_id) == list(past["embedding_id"]) == ids
    assert np.array_equal(np.stack(list(past["embedding"])).astype(np.float32), written.vectors)
    assert list(past["content_hash"]) == ["ab" * 16] * 2


def test_nothing_is_in_history_before_its_event(store: FeatureStore) -> None:
    archive = FeastArchive(store, FeastRows(store))
    archive.append_history(SPEC, batch(["a"]))
    assert history(store, ["a"], NOON - 1)["embedding_id"].isna().all()
    assert history(store, ["a"], NOON)["embedding_id"].notna().all()


def test_a_batch_appended_twice_is_one_row_to_a_reader(store: FeatureStore) -> None:
    archive = FeastArchive(store, FeastRows(store))
    archive.append_history(SPEC, batch(["a", "b"]))
    archive.append_history(SPEC, batch(["a", "b"], created_at=NOON + 99_000_000))
    past = history(store, ["a", "b"], NOON + 60_000_000)
    assert len(past) == 2
    assert past["embedding_id"].notna().all()


def test_a_view_applied_elsewhere_can_be_written_at_once(store: FeatureStore) -> None:
    archive = FeastArchive(store, FeastRows(store))
    archive.append_history(SPEC, batch(["a"]))  # fills the registry's cache
    apply(FeatureStore(repo_path=str(store.repo_path)), NEWER)
    written = batch(["a"], NEWER)
    archive.append_history(NEWER, written)
    archive.write_online(NEWER, written)
    assert FeastRows(store).read(NEWER, ["a"]).found.all()


def test_what_the_stores_raise_is_one_error(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnavailable, match="Cassandra does not answer"):
        FeastArchive(store, NoRows()).archived(SPEC, ["a"])
    archive = FeastArchive(store, FeastRows(store))
    with pytest.raises(ArchiveUnavailable, match="does not hold the view"):
        archive.write_online(NEWER, batch(["a"], NEWER))
    (tmp_path / "data").write_text("a file where the folder of history should be")
    with pytest.raises(ArchiveUnavailable, match="history cannot be used"):
        archive.append_history(SPEC, batch(["a"]))


def test_archives_of_two_views_do_not_mix() -> None:
    archive = MemoryArchive()
    archive.write_online(SPEC, batch(["a"]))
    assert archive.archived(SPEC, ["a", "b"]) == {"a"}
    assert archive.archived(NEWER, ["a"]) == set()


def test_a_late_event_does_not_replace_a_newer_one_in_memory() -> None:
    archive = MemoryArchive()
    archive.write_online(SPEC, batch(["x", "a"]))  # event time NOON + 1
    archive.write_online(SPEC, batch(["a"]))  # NOON
    assert archive.rows[SPEC.view, "a"][0] == NOON + 1


def test_the_table_has_the_types_that_the_view_declares(tmp_path: Path) -> None:
    entity = Entity(name="text", join_keys=["text"], value_type=ValueType.STRING)
    declared = part_schema(applied(feature_view(SPEC, entity, tmp_path)))
    made = table(SPEC, batch(["a", "b"])).schema
    assert {field.name: field.type for field in made} == {field.name: field.type for field in declared}


def applied(view: FeatureView) -> FeatureView:
    """As `feast apply` completes it."""
    view.entity_columns = [Field(name="text", dtype=String)]
    view.features = [field for field in view.schema if field.name != "text"]
    return view


def test_both_stores_are_given_the_same() -> None:
    written = batch(["a", "b"])
    online, past = rows(SPEC, written), table(SPEC, written).to_pylist()
    for (key, values, event_time, created_time), row in zip(online, past, strict=True):
        assert key.entity_values[0].string_val == row["text"]
        assert list(values["embedding"].float_list_val.val) == row["embedding"]
        assert values["embedding_id"].int64_val == row["embedding_id"]
        assert values["content_hash"].string_val == row["content_hash"] == "ab" * 16
        assert (event_time, created_time) == (row["event_timestamp"], row["created_timestamp"])


def test_events_far_away_in_time_can_be_written() -> None:
    far = EmbeddedBatch.of(
        SPEC.view,
        keys=["a"],
        vectors=np.zeros((1, 4), np.float32),
        event_time=np.array([0], dtype=np.int64),
        content_hash=[""],
        created_at=10_000_000_000_000_000,  # year 2286: beyond what nanoseconds can count
    )
    (row,) = table(SPEC, far).to_pylist()
    assert (row["event_timestamp"].year, row["created_timestamp"].year) == (1970, 2286)
    assert rows(SPEC, far)[0][3] == row["created_timestamp"]
