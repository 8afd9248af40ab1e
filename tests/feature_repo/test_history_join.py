"""The point-in-time join: against a slow reading of its rules, against stock Feast, and its contract with Feast."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource, RequestSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64
from feast.value_type import ValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.offline.compaction import compact
from feature_repo.offline.history import read_whole
from feature_repo.offline.point_in_time import NEVER, NOTHING, Rows, rows_at
from tests.feature_repo.history import STOCK, Row, apply, at, entity_rows, item_view, open_store, push, standing

MINUTES = st.integers(-6, 6)
KEYS = st.tuples(st.sampled_from(["a", "b", "é", None]), st.sampled_from([1, 2, None]))
ROWS = st.lists(
    st.builds(
        Row,
        key=KEYS,
        event=st.one_of(MINUTES, st.none()),
        created=st.one_of(MINUTES, st.none()),
        number=st.one_of(st.integers(0, 99), st.none()),
    ),
    max_size=30,
)


ZONES = st.sampled_from(["UTC", "Asia/Kathmandu", "America/New_York", None])  # None: no zone, which is UTC


def number(value: object) -> int | None:
    return None if pd.isna(value) else int(value)  # type: ignore[call-overload]


@settings(deadline=None, max_examples=60)
@given(
    rows=ROWS,
    parts=st.integers(1, 4),
    asked=st.lists(
        st.tuples(st.sampled_from(["a", "b", "é", "c", None]), st.sampled_from([1, 2, 3]), MINUTES), max_size=12
    ),
    ttl=st.one_of(st.none(), st.integers(1, 6)),
    as_served=st.booleans(),
    again=st.lists(st.integers(0, 29), max_size=6),
    compacted=st.booleans(),
    zones=st.tuples(ZONES, ZONES),
)
def test_the_join_finds_what_a_slow_reading_of_its_rules_finds(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    parts: int,
    asked: list[tuple[str | None, int, int]],
    ttl: int | None,
    as_served: bool,
    again: list[int],
    compacted: bool,
    zones: tuple[str | None, str | None],
) -> None:
    folder = tmp_path_factory.mktemp("join")
    store = open_store(folder)
    both = item_view(
        folder,
        keys=("item", "shop"),
        types=(ValueType.STRING, ValueType.INT64),
        ttl=timedelta(minutes=ttl or 0),
    )
    other = item_view(folder, "others", keys=("shop",), types=(ValueType.INT64,))
    apply(store, both, other)
    replayed = [rows[i] for i in again if i < len(rows)]
    for some in (*(rows[part::parts] for part in range(parts)), replayed):
        push(store, both[1], some, zone=zones[0])
    if compacted:
        compact(both[1], grace_seconds=60.0, target_bytes=1 << 20)
    others = [Row((row.key[1],), row.event, row.created, row.number) for row in rows]
    push(store, other[1], others)
    entities = entity_rows(("item", "shop"), asked)
    entities["event_timestamp"] = entities["event_timestamp"].dt.tz_convert(zones[1])
    refs = ["items:vector", "items:number", "others:number"]
    job = store.get_historical_features(entities, refs, full_feature_names=True, filter_by_created_timestamp=as_served)
    found = job.to_arrow().to_pylist()
    assert [(row["item"], row["shop"], row["event_timestamp"]) for row in found] == [
        (item, shop, at(minute)) for item, shop, minute in asked
    ]
    for row, (item, shop, minute) in zip(found, asked, strict=True):
        allowed = standing(rows, (item, shop), minute, ttl=ttl, as_served=as_served)
        assert number(row["items__number"]) in allowed
        assert row["items__vector"] == (None if row["items__number"] is None else [row["items__number"], 0.5])
        assert number(row["others__number"]) in standing(others, (shop,), minute, as_served=as_served)


@settings(deadline=None, max_examples=200)
@given(
    rows=ROWS,
    asked=st.lists(st.tuples(st.integers(0, 4), MINUTES), max_size=20),
    ttl=st.one_of(st.none(), MINUTES.map(abs)),
    as_served=st.booleans(),
    tied=st.booleans(),
)
def test_positions_are_those_of_a_slow_reading(
    rows: list[Row], asked: list[tuple[int, int]], ttl: int | None, as_served: bool, tied: bool
) -> None:
    names = {"a": 0, "b": 1, "é": 2, None: -1}

    def times(of: list[int | None]) -> np.ndarray:
        return np.array([NEVER if t is None else t for t in of], dtype=np.int64)

    key = np.array([names[str(r.key[0]) if r.key[0] else None] for r in rows], dtype=np.int64)
    tie = np.array([r.number or 0 for r in rows], dtype=np.int64)
    history = Rows(key, times([r.event for r in rows]), times([r.created for r in rows]), tie if tied else None)
    found = rows_at(
        history,
        np.array([k for k, _ in asked], dtype=np.int64),
        np.array([m for _, m in asked], dtype=np.int64),
        ttl=ttl,
        as_served=as_served,
    )
    numbered = [
        Row((int(k),) if k >= 0 else (None,), r.event, r.created, i)
        for i, (k, r) in enumerate(zip(key, rows, strict=True))
    ]
    for position, (k, moment) in zip(found, asked, strict=True):
        allowed = standing(numbered, (k,), moment, ttl=ttl, as_served=as_served)
        if tied and None not in allowed:
            allowed = {i for i in allowed if tie[i] == max(tie[list(allowed)])}
        assert (None if position == NOTHING else int(position)) in allowed


def test_of_one_event_time_the_row_created_last_stands_then_the_greatest_tie_breaker() -> None:
    key, event = np.zeros(4, dtype=np.int64), np.ones(4, dtype=np.int64)
    rows = Rows(key, event, created=np.array([5, 4, 5, 5]), tie=np.array([1, 9, 3, 2]))
    assert rows_at(rows, np.array([0]), np.array([7])).tolist() == [2]
    assert rows_at(rows, np.array([0]), np.array([4]), as_served=True).tolist() == [1]


@pytest.fixture
def stores(tmp_path: Path) -> tuple[FeatureStore, FeatureStore, FeatureView]:
    """Ours and stock duckdb over one registry and one folder of parts: 60 keys, 900 rows in 6 parts."""
    ours = open_store(tmp_path)
    items = item_view(tmp_path, ttl=timedelta(minutes=400))
    apply(ours, items)
    draw = np.random.default_rng(0)
    for part in range(6):
        events = draw.permutation(3000)[:150]
        push(ours, items[1], [Row((f"k{draw.integers(60)}",), int(e), int(e) + part, int(e)) for e in events])
    return ours, open_store(tmp_path, STOCK), items[1]


def asked(count: int = 300) -> pd.DataFrame:
    draw = np.random.default_rng(1)
    frame = entity_rows(("item",), [(f"k{draw.integers(70)}", int(draw.integers(-100, 3500))) for _ in range(count)])
    frame["label"] = draw.integers(2, size=count)
    return pd.concat([frame, frame.head(20)], ignore_index=True)


@pytest.mark.parametrize("as_served", [False, True])
@pytest.mark.parametrize("full_feature_names", [False, True])
def test_the_join_is_that_of_stock_feast(
    stores: tuple[FeatureStore, FeatureStore, FeatureView], as_served: bool, full_feature_names: bool
) -> None:
    frames = [
        store.get_historical_features(
            asked(),
            ["items:vector", "items:number"],
            full_feature_names=full_feature_names,
            filter_by_created_timestamp=as_served,
        ).to_df()
        for store in stores[:2]
    ]
    ours, stock = (f.sort_values(["item", "event_timestamp", "label"]).reset_index(drop=True) for f in frames)
    assert list(ours.columns) == list(stock.columns)
    assert ours.dtypes.to_dict() == stock.dtypes.to_dict()
    name = "items__vector" if full_feature_names else "vector"
    pd.testing.assert_frame_equal(ours.drop(columns=name), stock.drop(columns=name))
    for one, other in zip(ours[name], stock[name], strict=True):
        assert np.array_equal(one, other) if one is not None else other is None
    assert frames[0]["label"].tolist() == asked()["label"].tolist()  # ours keeps the order of the rows


def test_entity_times_of_any_zone_and_of_none_are_the_same_moment(
    stores: tuple[FeatureStore, FeatureStore, FeatureView],
) -> None:
    store = stores[0]
    frame = asked()
    zoned = frame.assign(event_timestamp=frame["event_timestamp"].dt.tz_convert("Asia/Tokyo"))
    naive = frame.assign(event_timestamp=frame["event_timestamp"].dt.tz_localize(None))
    text = frame.assign(event_timestamp=frame["event_timestamp"].astype(str))
    nanos = frame.assign(event_timestamp=frame["event_timestamp"].dt.as_unit("ns") + pd.Timedelta(1, "ns"))
    expected = store.get_historical_features(frame, ["items:number"]).to_df()["number"]
    for other in (zoned, naive, text, nanos):
        found = store.get_historical_features(other, ["items:number"]).to_df()
        pd.testing.assert_series_equal(found["number"], expected)


def test_entity_rows_may_come_from_a_query(
    stores: tuple[FeatureStore, FeatureStore, FeatureView], tmp_path: Path
) -> None:
    asked().to_parquet(tmp_path / "asked.parquet")
    query = f"SELECT item, event_timestamp FROM '{tmp_path}/asked.parquet' WHERE label = 1"  # noqa: S608
    found = stores[0].get_historical_features(query, ["items:number"]).to_df()
    assert len(found) == asked()["label"].sum()
    assert found["number"].notna().any()


def test_an_entity_column_that_is_missing_is_named(stores: tuple[FeatureStore, FeatureStore, FeatureView]) -> None:
    with pytest.raises(ValueError, match="item"):
        stores[0].get_historical_features(asked().drop(columns="item"), ["items:number"])


def test_join_keys_go_by_other_names_where_a_service_says_so(
    stores: tuple[FeatureStore, FeatureStore, FeatureView],
) -> None:
    from feast import FeatureService

    store, _, view = stores
    service = FeatureService(
        name="pairs",
        features=[
            view[["number"]].with_name("left").with_join_key_map({"item": "shown"}),
            view[["number"]].with_name("right").with_join_key_map({"item": "bought"}),
        ],
    )
    store.apply([service])
    frame = asked().rename(columns={"item": "shown"})
    frame["bought"] = frame["shown"].iloc[::-1].to_numpy()
    found = store.get_historical_features(frame, service, full_feature_names=True).to_df()
    plain = store.get_historical_features(asked(), ["items:number"]).to_df()["number"]
    pd.testing.assert_series_equal(found["left__number"], plain, check_names=False)
    assert found["right__number"].notna().any()


def test_mapped_columns_are_found_and_appended_under_the_names_of_the_files(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    items = item_view(tmp_path, mapping={"n": "number", "sku": "item"})
    apply(store, items)
    push(store, items[1], [Row(("a",), 0, 0, 7)])
    (part,) = (p for p in (tmp_path / "items").glob("2*.parquet"))
    assert set(pq.read_schema(part).names) == {"sku", "vector", "n", "event_timestamp", "created_timestamp"}
    for each in (store, open_store(tmp_path, STOCK)):
        found = each.get_historical_features(entity_rows(("item",), [("a", 5)]), ["items:number"]).to_df()
        assert found["number"].tolist() == [7]


def test_views_of_parts_and_of_one_file_are_joined_together(
    stores: tuple[FeatureStore, FeatureStore, FeatureView], tmp_path: Path
) -> None:
    store, stock, _ = stores
    pd.DataFrame({"item": ["k1"], "price": [3], "event_timestamp": [at(0)]}).to_parquet(tmp_path / "prices.parquet")
    prices = FeatureView(
        name="prices",
        entities=[store.get_entity("item")],
        schema=[Field(name="price", dtype=Int64)],
        source=FileSource(path=str(tmp_path / "prices.parquet"), timestamp_field="event_timestamp"),
        ttl=timedelta(0),
    )
    store.apply([prices])
    refs = ["prices:price", "items:number"]
    ours, theirs = (s.get_historical_features(asked(), refs).to_df() for s in (store, stock))
    keys = ["item", "event_timestamp", "label"]
    ours, theirs = (f.sort_values(keys).reset_index(drop=True) for f in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs)
    alone = store.get_historical_features(asked(), ["prices:price"]).to_df()
    assert alone["price"].notna().sum() == ours["price"].notna().sum() > 0
    query = "SELECT 'k1' AS item, TIMESTAMPTZ '2026-01-02 00:00:00+00' AS event_timestamp"
    assert store.get_historical_features(query, ["prices:price"]).to_df()["price"].tolist() == [3]


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")
def test_on_demand_views_and_saved_sets_keep_feasts_contract(
    stores: tuple[FeatureStore, FeatureStore, FeatureView], tmp_path: Path
) -> None:
    store, _, view = stores
    request = RequestSource(name="request", schema=[Field(name="label", dtype=Int64)])

    @on_demand_feature_view(sources=[view, request], schema=[Field(name="sum", dtype=Int64)])
    def total(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"sum": frame["number"].fillna(0).astype("int64") + frame["label"]})

    store.apply([total])
    job = store.get_historical_features(asked(), ["items:number", "total:sum"])
    found = job.to_df()
    assert (found["sum"] == found["number"].fillna(0) + found["label"]).all()
    assert job.metadata is not None
    assert set(job.metadata.keys) == {"item", "label"}
    times = asked()["event_timestamp"]
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (times.min(), times.max())
    plain = store.get_historical_features(asked(), ["items:number"])
    plain.persist(SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet")))
    assert len(pd.read_parquet(tmp_path / "saved.parquet")) == len(asked())


def test_materializing_takes_the_last_row_of_each_key(
    stores: tuple[FeatureStore, FeatureStore, FeatureView],
) -> None:
    store, stock, view = stores
    args = (store.config, view.batch_source, ["item"], ["number"], "event_timestamp", "created_timestamp")
    span = (at(100), at(2000))
    ours, theirs = (s._get_provider().offline_store for s in (store, stock))
    for name in ("pull_latest_from_table_or_query", "pull_all_from_table_or_query"):
        mine, stocks = (
            getattr(each, name)(*args, *span).to_df().sort_values(["item", "event_timestamp", "number"])
            for each in (ours, theirs)
        )
        mine, stocks = (f.reset_index(drop=True) for f in (mine, stocks))
        pd.testing.assert_frame_equal(mine, stocks)
    store.materialize(*span)
    assert store.get_online_features(["items:number"], [{"item": "k1"}]).to_dict()["number"][0] is not None


def test_parts_that_cannot_matter_are_not_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    items = item_view(tmp_path, ttl=timedelta(days=1))
    apply(store, items)
    for day in (-4, 0, 4):
        push(store, items[1], [Row(("a",), day * 1440, day * 1440, day + 10)])
    for part in (tmp_path / "items").glob("2*.parquet"):
        if not part.name.startswith("20260101"):
            part.write_bytes(b"no parquet")
    found = store.get_historical_features(entity_rows(("item",), [("a", 5)]), ["items:number"]).to_df()
    assert found["number"].tolist() == [10]


def test_a_feature_that_came_later_is_null_before(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    items = item_view(tmp_path)
    apply(store, items)
    push(store, items[1], [Row(("a",), 0, 0, 1)])
    view = items[1]
    more = [
        *(Field(name=c.name, dtype=c.dtype) for c in [*view.entity_columns, *view.features]),
        Field(name="new", dtype=Int64),
    ]
    wider = FeatureView(name="items", entities=items[0], schema=more, source=view.batch_source, ttl=timedelta(0))
    apply(store, (items[0], wider))
    frame = pd.DataFrame({"item": ["b"], "vector": [np.ones(2, np.float32)], "number": [2], "new": [3]})
    frame["event_timestamp"] = frame["created_timestamp"] = pd.Series([at(0)]).dt.as_unit("us")
    store.write_to_offline_store("items", frame)
    found = store.get_historical_features(entity_rows(("item",), [("a", 5), ("b", 5)]), ["items:number", "items:new"])
    assert found.to_arrow().select(["number", "new"]).to_pylist() == [
        {"number": 1, "new": None},
        {"number": 2, "new": 3},
    ]


def test_history_lies_on_whatever_fsspec_knows(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    items = item_view(f"memory://{tmp_path.name}")
    apply(store, items)
    assert (
        store.get_historical_features(entity_rows(("item",), [("a", 5)]), ["items:number"])
        .to_df()["number"]
        .isna()
        .all()
    )
    for i in range(5):
        push(store, items[1], [Row((f"k{i}",), i, i, i)])
    found = store.get_historical_features(
        entity_rows(("item",), [("k3", 5), ("k4", 1)]), ["items:number", "items:vector"]
    )
    assert found.to_arrow()["number"].to_pylist() == [3, None]
    assert found.to_arrow()["vector"].to_pylist() == [[3.0, 0.5], None]


def test_vectors_come_out_as_one_matrix() -> None:
    from feature_repo.offline.gather import matrix, take

    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    lists = pa.ListArray.from_arrays(np.arange(0, 13, 3, dtype=np.int32), vectors.ravel())
    column = pa.chunked_array([lists.slice(1, 2), lists.slice(3)])
    assert np.array_equal(matrix(column), vectors[1:])  # type: ignore[arg-type]
    taken = take(pa.table({"v": column}), np.array([2, -1, 0, 0]))["v"]
    assert taken.to_pylist() == [[9.0, 10.0, 11.0], None, [3.0, 4.0, 5.0], [3.0, 4.0, 5.0]]
    assert matrix(pa.chunked_array([pa.array([[1.0], [1.0, 2.0]])])) is None
    assert matrix(pa.chunked_array([pa.array([[1.0], None])])) is None


def test_a_read_is_repeated_where_parts_go_away_under_it_and_gives_up_in_the_end() -> None:
    tries: list[int] = []

    def read(failing: int) -> int:
        tries.append(failing)
        if len(tries) <= failing:
            raise FileNotFoundError(f"part {len(tries)} is compacted")
        return len(tries)

    assert read_whole(lambda: read(2)) == 3
    tries.clear()
    with pytest.raises(FileNotFoundError, match="part 3 is compacted"):
        read_whole(lambda: read(9))
