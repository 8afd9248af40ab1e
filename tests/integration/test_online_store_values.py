"""Values of every Feast type come back from our online store as they do from Feast's own on SQLite.

Where the two differ on purpose:
- a row replaces the one before it whole; SQLite keeps the features that the later row has not;
- the last event wins; in SQLite the last write does;
- a value of another kind than its scalar feature's, or a vector of another length, is refused; SQLite takes it;
- event times keep their microseconds, which SQLite cuts off.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.types import Array, Bool, Bytes, FeastType, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embark.servers import LocalServers
from tests.feature_repo.feast_values import KEY_VALUES, VALUES, bits, vectors
from tests.integration.online_repos import file_source, online, open_store, write_online_repo

pytestmark = pytest.mark.servers

DIM = 3
EVENT = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # not shrunk: each step would apply a view
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@dataclass(frozen=True)
class Pair:
    """The same feature repo on our store and on SQLite."""

    ours: FeatureStore
    sqlite: FeatureStore

    def apply(self, view: FeatureView, entities: list[Entity]) -> None:
        for store in (self.ours, self.sqlite):
            store.apply([*entities, view])

    def write(self, view: FeatureView, rows: list[Any]) -> None:
        for store in (self.ours, self.sqlite):
            online(store).online_write_batch(store.config, view, rows, None)

    def read(self, view: FeatureView, keys: list[EntityKey]) -> tuple[list[Any], list[Any]]:
        ours, sqlite = (online(store).online_read(store.config, view, keys) for store in (self.ours, self.sqlite))
        return [told(row) for row in ours], [told(row) for row in sqlite]

    def answer(self, features: list[str], entities: list[dict[str, Any]]) -> tuple[Any, Any]:
        ours, sqlite = (store.get_online_features(features, entities) for store in (self.ours, self.sqlite))
        return ours, sqlite


def told(row: tuple[datetime | None, dict[str, Value] | None]) -> Any:
    """A row by its bits: NaN is NaN, and a null is a null however it is written."""
    moment, values = row
    if values is None:
        return moment, None
    nothing = (None, "null_val")
    return moment, {n: None if v.WhichOneof("val") in nothing else bits(v) for n, v in values.items()}


def plain(value: Any) -> str:
    """A value of Python in which NaN is NaN, and maps and sets have no order."""
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{key!r}: {plain(each)}' for key, each in value.items()))}}}"
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(plain, value)))}}}"
    return f"[{', '.join(map(plain, value))}]" if isinstance(value, list | tuple) else repr(value)


@pytest.fixture(scope="module")
def pair(servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder, project = tmp_path_factory.mktemp("values"), f"v{uuid.uuid4().hex[:8]}"
    ours = write_online_repo(folder / "ours", servers, project=project)
    theirs = write_online_repo(folder / "sqlite", servers, project=project)
    text = (ours / "feature_store.yaml").read_text()
    start = text.index('"online_store"')
    end = text.index("}", start) + 1
    (theirs / "feature_store.yaml").write_text(
        (text[:start] + f'"online_store": {{"type": "sqlite", "path": "{theirs / "online.db"}"}}' + text[end:]).replace(
            str(ours), str(theirs)
        )
    )
    with open_store(ours) as store:
        sqlite = FeatureStore(repo_path=str(theirs))
        yield Pair(store, sqlite)
        online(sqlite)._conn.close()


KEY_TYPES = {
    String: ValueType.STRING,
    Bytes: ValueType.BYTES,
    Int32: ValueType.INT32,
    Int64: ValueType.INT64,
    UnixTimestamp: ValueType.UNIX_TIMESTAMP,
}


def view_of(keys: list[FeastType], features: list[FeastType | int]) -> tuple[FeatureView, list[Entity]]:
    """A view with keys k0, k1 … and features f0, f1 …; a number is a vector of that length."""
    name = f"view_{uuid.uuid4().hex[:8]}"
    entities = [
        Entity(name=f"k{i}_{name}", join_keys=[f"k{i}"], value_type=KEY_TYPES[key]) for i, key in enumerate(keys)
    ]
    schema = [Field(name=f"k{i}", dtype=key) for i, key in enumerate(keys)]
    for i, feature in enumerate(features):
        dim = feature if isinstance(feature, int) else 0
        schema.append(Field(name=f"f{i}", dtype=Array(Float32) if dim else feature, vector_length=dim))
    return FeatureView(
        name=name, entities=entities, schema=schema, source=file_source(name), ttl=timedelta(0)
    ), entities


def values_of(feature: FeastType | int) -> st.SearchStrategy[Value]:
    return vectors(feature) if isinstance(feature, int) else VALUES[feature]


FEATURES = st.lists(st.sampled_from([DIM, *VALUES]), min_size=4, max_size=9)


@settings(max_examples=20, suppress_health_check=SLOW, phases=PHASES)
@given(st.lists(st.sampled_from(list(KEY_TYPES)), min_size=1, max_size=3), FEATURES, st.data())
def test_any_view_is_answered_as_sqlite_answers_it(
    pair: Pair, key_types: list[FeastType], features: list[FeastType | int], data: st.DataObject
) -> None:
    view, entities = view_of(key_types, features)
    pair.apply(view, entities)
    names = [f"k{i}" for i in range(len(key_types))]
    nothing = Value(bytes_val=b"")  # in a row of entities Feast takes it for null
    keys = st.tuples(*(KEY_VALUES[key].filter(lambda value: value != nothing) for key in key_types)).map(
        lambda values: EntityKey(join_keys=names, entity_values=values)
    )
    written = data.draw(st.lists(keys, min_size=1, max_size=6, unique_by=bits))
    absent = st.just(Value())
    row = st.fixed_dictionaries({f"f{i}": absent | values_of(feature) for i, feature in enumerate(features)})
    rows = [(key, data.draw(row), EVENT + timedelta(seconds=i), EVENT) for i, key in enumerate(written)]
    pair.write(view, rows)

    asked = [*written, *data.draw(st.lists(keys, max_size=3)), written[0]]
    ours, theirs = pair.read(view, asked)
    assert ours == theirs
    assert ours[: len(rows)] == [told((moment, values)) for _, values, moment, _ in rows]

    natives = [dict(zip(names, map(feast_value_type_to_python_type, key.entity_values), strict=True)) for key in asked]
    answered, expected = pair.answer([f"{view.name}:f{i}" for i in range(len(features))], natives)
    assert list(answered.proto.metadata.feature_names.val) == list(expected.proto.metadata.feature_names.val)
    for one, other in zip(answered.proto.results, expected.proto.results, strict=True):
        assert list(one.statuses) == list(other.statuses)
        assert list(one.event_timestamps) == list(other.event_timestamps)
        assert [told((None, {"": value})) for value in one.values] == [
            told((None, {"": value})) for value in other.values
        ]
    assert plain(answered.to_dict(True)) == plain(expected.to_dict(True))


# What frames hold, whose values Feast makes protobuf of.
COLUMNS: dict[FeastType | int, st.SearchStrategy[Any]] = {
    Int32: st.integers(-(2**31), 2**31 - 1),
    Int64: st.integers(-(2**63), 2**63 - 1),
    Float32: st.floats(width=32),
    Float64: st.floats(),
    Bool: st.booleans(),
    String: st.text(),
    Bytes: st.binary(),
    UnixTimestamp: st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(
        lambda moment: moment.replace(microsecond=0)
    ),
    Array(Int64): st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3).map(np.array),
    Array(String): st.lists(st.text(), min_size=1, max_size=3),
    DIM: st.lists(st.floats(width=32), min_size=DIM, max_size=DIM).map(lambda v: np.array(v, dtype=np.float32)),
}


@settings(max_examples=12, suppress_health_check=SLOW, phases=PHASES)
@given(st.lists(st.sampled_from(list(COLUMNS)), min_size=3, max_size=7), st.data())
def test_frames_are_kept_as_sqlite_keeps_them(pair: Pair, features: list[FeastType | int], data: st.DataObject) -> None:
    view, entities = view_of([String], features)
    pair.apply(view, entities)
    count = data.draw(st.integers(1, 5))
    frame = pd.DataFrame(
        {
            "k0": [f"key{n}" for n in range(count)],
            "event_timestamp": [EVENT + timedelta(seconds=n) for n in range(count)],
            "created": [EVENT] * count,
        }
    )
    for i, feature in enumerate(features):
        column = data.draw(st.lists(COLUMNS[feature], min_size=count, max_size=count))
        if feature in (String, Bytes, DIM) and count > 1 and data.draw(st.booleans()):
            column[0] = None
        frame[f"f{i}"] = pd.Series(
            column, dtype=object if feature in (String, Bytes, DIM) or isinstance(feature, Array) else None
        )
    for store in (pair.ours, pair.sqlite):
        store.write_to_online_store(view.name, frame.copy())

    natives = [{"k0": f"key{n}"} for n in range(count + 1)]
    answered, expected = pair.answer([f"{view.name}:f{i}" for i in range(len(features))], natives)
    assert plain(answered.to_dict()) == plain(expected.to_dict())
    for one, other in zip(answered.proto.results, expected.proto.results, strict=True):
        assert list(one.statuses) == list(other.statuses)


def test_a_row_replaces_the_one_before_it_whole_where_sqlite_merges_them(pair: Pair) -> None:
    view, entities = view_of([Int64], [Int64, Int64])
    pair.apply(view, entities)
    key = EntityKey(join_keys=["k0"], entity_values=[Value(int64_val=1)])
    pair.write(view, [(key, {"f0": Value(int64_val=1), "f1": Value(int64_val=1)}, EVENT, EVENT)])
    pair.write(view, [(key, {"f0": Value(int64_val=2)}, EVENT + timedelta(seconds=1), EVENT)])
    ((_, ours),), ((_, theirs),) = pair.read(view, [key])
    assert set(ours) == {"f0"}
    assert set(theirs) == {"f0", "f1"}


def test_a_late_write_is_left_out_where_sqlite_takes_it(pair: Pair) -> None:
    view, entities = view_of([Int64], [Int64])
    pair.apply(view, entities)
    key = EntityKey(join_keys=["k0"], entity_values=[Value(int64_val=1)])
    pair.write(view, [(key, {"f0": Value(int64_val=2)}, EVENT, EVENT)])
    pair.write(view, [(key, {"f0": Value(int64_val=1)}, EVENT - timedelta(days=1), EVENT)])
    ((ours, _),), ((theirs, _),) = pair.read(view, [key])
    assert (ours, theirs) == (EVENT, EVENT - timedelta(days=1))


def test_a_key_with_a_value_that_cannot_be_one_is_refused_as_by_sqlite(pair: Pair) -> None:
    view, entities = view_of([Int64], [Int64])
    pair.apply(view, entities)
    for value in (Value(), Value(double_val=1.0), Value(bool_val=True)):
        key = EntityKey(join_keys=["k0"], entity_values=[value])
        for store in (pair.ours, pair.sqlite):
            with pytest.raises(ValueError, match="Value type not supported"):
                online(store).online_read(store.config, view, [key])
            with pytest.raises(ValueError, match="Value type not supported"):
                online(store).online_write_batch(store.config, view, [(key, {}, EVENT, EVENT)], None)
