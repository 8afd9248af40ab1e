import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView
from feast.data_source import PushMode
from feast.value_type import ValueType

from encoders.spec import EncoderSpec
from feature_repo.offline.folder import Folder
from feature_repo.offline_store import ensure_readable, part_schema, parts_folder, write_part
from feature_repo.views import feature_view, push_source_name

SPEC = EncoderSpec(
    name="tiny", version="v1", modality="text", dim=4, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    (tmp_path / "feature_store.yaml").write_text(
        "project: history\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(tmp_path))
    entity = Entity(name="text", join_keys=["text"], value_type=ValueType.STRING)
    view = feature_view(SPEC, entity, tmp_path)
    ensure_readable(view)
    store.apply([entity, view])
    return store


def view_of(store: FeatureStore) -> FeatureView:
    return store.get_feature_view(SPEC.view)


def rows(keys: list[str], *, at: datetime = NOON, created: datetime = NOON) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "text": keys,
            "embedding": [np.full(SPEC.dim, i, dtype=np.float32) for i in range(len(keys))],
            "embedding_id": np.arange(len(keys), dtype=np.int64),
            "content_hash": ["00"] * len(keys),
            "event_timestamp": pd.to_datetime([at] * len(keys), utc=True),
            "created_timestamp": pd.to_datetime([created] * len(keys), utc=True),
        }
    )


def push(store: FeatureStore, frame: pd.DataFrame) -> None:
    store.push(push_source_name(SPEC.view), frame, to=PushMode.OFFLINE)


def history(store: FeatureStore, keys: list[str], at: datetime) -> pd.DataFrame:
    entities = pd.DataFrame({"text": keys, "event_timestamp": pd.to_datetime([at] * len(keys), utc=True)})
    job = store.get_historical_features(entities, [f"{SPEC.view}:embedding", f"{SPEC.view}:embedding_id"])
    return job.to_df().set_index("text").loc[keys]


def test_a_view_that_nothing_was_pushed_to_has_no_history_rather_than_an_error(store: FeatureStore) -> None:
    found = history(store, ["a"], NOON)
    assert found["embedding"].isna().all()


def test_history_that_was_deleted_reads_as_empty(store: FeatureStore) -> None:
    folder = parts_folder(view_of(store))
    assert folder is not None
    shutil.rmtree(folder)
    assert history(store, ["a"], NOON)["embedding_id"].isna().all()


def test_what_was_pushed_is_found_from_its_event_time_on(store: FeatureStore) -> None:
    push(store, rows(["a", "b"]))
    assert history(store, ["b"], NOON)["embedding"].iloc[0].tolist() == [1.0] * 4
    assert history(store, ["b"], datetime(2026, 1, 1, 11, 59, 59, tzinfo=UTC))["embedding"].isna().all()


def test_a_push_leaves_the_parts_before_it_untouched(store: FeatureStore) -> None:
    push(store, rows(["a"]))
    folder = parts_folder(view_of(store))
    assert folder is not None
    before = {p: p.read_bytes() for p in folder.iterdir()}
    push(store, rows(["b"]))
    assert {p: p.read_bytes() for p in before} == before
    assert len(list(folder.iterdir())) == len(before) + 1
    assert history(store, ["a", "b"], NOON)["embedding_id"].notna().all()


def test_a_replayed_push_shows_one_row(store: FeatureStore) -> None:
    push(store, rows(["a"]))
    push(store, rows(["a"], created=datetime(2026, 1, 1, 13, tzinfo=UTC)))
    assert len(history(store, ["a"], NOON)) == 1


def test_parts_keep_microseconds_and_float32(store: FeatureStore) -> None:
    at = datetime(2026, 1, 1, 12, 0, 0, 123457, tzinfo=UTC)
    push(store, rows(["a"], at=at))
    folder = parts_folder(view_of(store))
    assert folder is not None
    table = pq.ParquetDataset(folder).read()
    assert table.schema.field("embedding").type.value_type == pa.float32()
    assert at in table["event_timestamp"].to_pylist()


def test_pushes_at_once_lose_nothing(store: FeatureStore) -> None:
    view = view_of(store)
    provider = store._get_provider()
    tables = [pa.Table.from_pandas(rows([f"k{i}"]), preserve_index=False) for i in range(16)]
    threads = [threading.Thread(target=provider.ingest_df_to_offline_store, args=(view, t)) for t in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history(store, [f"k{i}" for i in range(16)], NOON)["embedding_id"].notna().all()


def test_wrong_columns_are_named(store: FeatureStore) -> None:
    table = pa.Table.from_pandas(rows(["a"]).drop(columns="content_hash"), preserve_index=False)
    with pytest.raises(ValueError, match="content_hash"):
        store._get_provider().ingest_df_to_offline_store(view_of(store), table)


def test_a_part_that_could_not_be_written_leaves_nothing_behind(store: FeatureStore, tmp_path: Path) -> None:
    class TornTable:
        schema = part_schema(view_of(store))
        nbytes = num_rows = 1

    with pytest.raises(TypeError):
        write_part(tmp_path / "parts" / "part-1.parquet", TornTable())
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_key_is_found_by_any_spelling_of_it(store: FeatureStore) -> None:
    push(store, rows(["a", "é"]))
    found = history(store, [" a\n", "e\u0301", "\0", "b"], NOON)
    assert found["embedding_id"].fillna(-1).tolist() == [0, 1, -1, -1]


def test_a_push_costs_the_same_however_many_were_before_it(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, rows(["a"]))

    def listed(*_: object) -> None:
        raise AssertionError("the folder was listed")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "names", listed)
        patch.setattr(Folder, "_listed", listed)
        patch.setattr(Folder, "is_flat", listed)
        patch.setattr(pq, "ParquetDataset", listed)
        push(store, rows(["b"]))
    assert history(store, ["a", "b"], NOON)["embedding_id"].notna().all()


def test_a_folder_that_others_filled_is_left_to_stock_feast(store: FeatureStore) -> None:
    view = view_of(store)
    folder = parts_folder(view)
    assert folder is not None
    shutil.rmtree(folder)
    folder.mkdir()
    rows(["a"]).to_parquet(folder / "theirs.parquet")
    assert history(store, ["a"], NOON)["embedding_id"].tolist() == [0]
    assert [p.name for p in folder.iterdir()] == ["theirs.parquet"]


def test_a_folder_of_folders_takes_no_part(store: FeatureStore) -> None:
    folder = parts_folder(view_of(store))
    assert folder is not None
    shutil.rmtree(folder)
    (folder / "day=2026-01-01").mkdir(parents=True)
    table = pa.Table.from_pandas(rows(["a"]), preserve_index=False)
    with pytest.raises(ValueError, match="folders"):
        store._get_provider().ingest_df_to_offline_store(view_of(store), table)


def test_parts_are_named_after_the_days_of_their_rows(store: FeatureStore) -> None:
    push(store, pd.concat([rows(["a"]), rows(["b"], at=datetime(2026, 1, 3, tzinfo=UTC))], ignore_index=True))
    folder = parts_folder(view_of(store))
    assert folder is not None
    assert len(list(folder.glob("20260101-20260103_*.parquet"))) == 1
