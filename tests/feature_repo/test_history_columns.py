"""The columns of a history: any type of Feast's, a type that changed, and files typed otherwise than the view."""

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.types import Array, FeastType, Float32, Float64, Int32, Int64, Json, Map, Set, String, Struct, UnixTimestamp
from feast.value_type import ValueType

from feature_repo.offline.columns import arrow_type, as_told, evolved, fitted, part_schema
from feature_repo.offline.folder import Folder
from feature_repo.offline.parts import SCHEMA_PART
from feature_repo.offline_store import ensure_readable
from tests.feature_repo.history import at, entity_rows, open_store

ITEM = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)


def view_with(folder: Path, dtype: FeastType, *more: Field) -> FeatureView:
    return FeatureView(
        name="items",
        entities=[ITEM],
        ttl=timedelta(0),
        schema=[Field(name="item", dtype=String), Field(name="value", dtype=dtype), *more],
        source=FileSource(path=f"{folder}/items", file_format=ParquetFormat(), timestamp_field="event_timestamp"),
    )


def write(store: FeatureStore, values: list[object], key: str = "k") -> None:
    frame = pd.DataFrame({"item": [f"{key}{i}" for i in range(len(values))], "value": values})
    frame["event_timestamp"] = pd.Series([at(0)] * len(values)).dt.as_unit("us")
    store.write_to_offline_store("items", frame)


def read(store: FeatureStore, keys: list[str]) -> pa.ChunkedArray:
    return store.get_historical_features(entity_rows(("item",), [(k, 5) for k in keys]), ["items:value"]).to_arrow()[
        "value"
    ]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (Struct({"name": String, "age": Int32}), [{"name": "a", "age": 3}, None], None),
        (Array(Struct({"n": Int64})), [[{"n": 1}, {"n": 2}], []], None),
        (Array(Array(Float32)), [[[0.5, 1.5], []], [[2.5]]], None),
        (Map, [{"a": "x", "b": "y"}, {"c": "z"}], [[("a", "x"), ("b", "y")], [("c", "z")]]),
        (Json, ['{"a": [1]}', None], None),
        (Set(Int64), [[1, 2], [3]], None),
        (Array(Array(String)), [[["a"], ["b", "c"]], None], None),
    ],
    ids=str,
)
def test_a_value_of_any_type_comes_back(
    tmp_path: Path, dtype: FeastType, values: list[object], expected: list[object] | None
) -> None:
    store, view = open_store(tmp_path), view_with(tmp_path, dtype)
    ensure_readable(view)
    store.apply([ITEM, view])
    write(store, values)
    assert read(store, ["k0", "k1"]).to_pylist() == (expected or values)


def test_times_and_numbers_have_feasts_types() -> None:
    assert arrow_type(UnixTimestamp) == pa.timestamp("us")
    assert arrow_type(Array(Float32)) == pa.list_(pa.float32())
    assert arrow_type(Array(Array(Float64))) == pa.list_(pa.list_(pa.float64()))


def test_a_join_key_that_is_a_feature_too_is_one_column(tmp_path: Path) -> None:
    view = view_with(tmp_path, Int64)
    view.features.append(Field(name="item", dtype=String))
    assert part_schema(view).names == ["item", "value", "event_timestamp"]


def test_rows_have_the_types_of_the_files(tmp_path: Path) -> None:
    wide = pa.table(
        {
            "item": ["k0"],
            "value": pa.array([[1.1]], pa.list_(pa.float64())),
            "event_timestamp": pa.array([at(0)], pa.timestamp("ns")),
        }
    )
    folder = Folder.at(f"{tmp_path}/items")
    folder.write(SCHEMA_PART, wide.schema.empty_table())
    folder.write("theirs.parquet", wide)
    store = open_store(tmp_path)
    store.apply([ITEM, view_with(tmp_path, Array(Float32))])
    found = read(store, ["k0"])
    assert (found.type, found.to_pylist()) == (wide.schema.field("value").type, [[1.1]])


def test_a_column_whose_rows_cannot_be_cast_keeps_its_type(tmp_path: Path) -> None:
    told = pa.schema([("value", pa.struct([("a", pa.string())])), ("number", pa.int32()), ("old", pa.int8())])
    declared = pa.schema([("value", arrow_type(Map)), ("number", pa.int64()), ("new", pa.string())])
    kept = pa.schema([told.field("value"), ("number", pa.int64()), ("new", pa.string())])
    assert evolved(told, declared) == kept
    assert as_told(told, declared) == pa.schema([told.field("value"), ("number", pa.int32()), ("new", pa.string())])


def test_rows_written_before_a_type_grew_are_read_in_the_new_one(tmp_path: Path) -> None:
    store, view = open_store(tmp_path), view_with(tmp_path, Int32)
    ensure_readable(view)
    store.apply([ITEM, view])
    write(store, [1])
    view = view_with(tmp_path, Int64)
    ensure_readable(view)
    store.apply([view])
    write(store, [1 << 40], key="n")
    assert read(store, ["k0", "n0"]).to_pylist() == [1, 1 << 40]


def test_a_value_that_its_column_cannot_hold_is_refused_with_the_columns_name() -> None:
    schema = pa.schema([("number", pa.int32()), ("map", arrow_type(Map))])
    good = {"number": pa.array([1]), "map": pa.array([{"a": "b"}])}
    assert fitted(pa.table(good), schema).to_pylist() == [{"number": 1, "map": [("a", "b")]}]
    with pytest.raises(ValueError, match="number"):
        fitted(pa.table(good | {"number": pa.array([1 << 40])}), schema)
    with pytest.raises(ValueError, match="map"):
        fitted(pa.table(good | {"map": pa.array([{"a": 1}])}), schema)
