"""Tables follow `feast apply`: what is declared is there, and what is no longer declared is not lost."""

import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from feast import FeatureStore, FeatureView, Field
from feast.feast_object import FeastObject
from feast.protos.feast.types.Value_pb2 import Int64List, StringList, Value
from feast.types import Array, FeastType, Float32, Float64, Int64, String
from feast.value_type import ValueType

from embark.servers import LocalServers
from feature_repo.online.table import stored_tables
from feature_repo.session import NotApplied
from tests.integration.online_repos import (
    ITEM,
    item,
    item_view,
    online,
    open_store,
    read_items,
    vector,
    write_online_repo,
)

pytestmark = pytest.mark.servers

EVENT = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = Field(name="count", dtype=Int64)
Open = Callable[..., FeatureStore]


@pytest.fixture
def open_repo(servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Opens a feature repo of its own for each call, or one of a given project again."""
    with ExitStack() as stack:

        def open_one(**settings: Any) -> FeatureStore:
            folder = write_online_repo(tmp_path_factory.mktemp("schema"), servers, **settings)
            return stack.enter_context(open_store(folder))

        yield open_one


@pytest.fixture
def store(open_repo: Open) -> FeatureStore:
    return open_repo()


def apply(store: FeatureStore, *objects: FeastObject, without: tuple[FeastObject, ...] = ()) -> None:
    """`feast apply` of a repo with these objects."""
    store.apply([ITEM, *objects], objects_to_delete=list(without), partial=not without)


def write(store: FeatureStore, view: FeatureView, key: str, late: int = 0, **row: Value) -> None:
    moment = EVENT + timedelta(seconds=late)
    online(store).online_write_batch(store.config, view, [(item(key), row, moment, EVENT)], None)


def answered(store: FeatureStore, feature: str, *keys: str) -> list[tuple[Any, int]]:
    """Value and status of a feature for each key: 1 is PRESENT, 3 is NOT_FOUND."""
    answer = store.get_online_features([feature], [{"item": key} for key in keys])
    values = answer.to_dict()[feature.split(":")[1]]
    return list(zip(values, answer.proto.results[1].statuses, strict=True))


def tables(store: FeatureStore) -> list[tuple[str, int]]:
    """View and version of the project's tables."""
    session = online(store)._get_session(store.config)
    stored = stored_tables(session, store.config.online_store.keyspace)
    return [(table.view, table.version) for table in stored if table.project == store.project]


def test_a_field_that_is_added_is_missing_in_old_rows_and_there_in_new_ones(store: FeatureStore) -> None:
    before, after = item_view("v", COUNT), item_view("v", COUNT, Field(name="title", dtype=String))
    apply(store, before)
    write(store, before, "old", count=Value(int64_val=1))
    apply(store, after)
    write(store, after, "new", count=Value(int64_val=2), title=Value(string_val="b"))
    assert answered(store, "v:count", "old", "new") == [(1, 1), (2, 1)]
    assert answered(store, "v:title", "old", "new") == [(None, 3), ("b", 1)]


def test_a_row_that_is_materialized_again_gains_the_field_that_was_added(store: FeatureStore) -> None:
    before, after = item_view("v", COUNT), item_view("v", COUNT, Field(name="title", dtype=String))
    keys = [f"key{n}" for n in range(20)]
    apply(store, before)
    for key in keys:
        write(store, before, key, count=Value(int64_val=1))
    apply(store, after)
    for key in keys:
        write(store, after, key, count=Value(int64_val=1), title=Value(string_val=key))  # at the same times
    for key in keys:
        write(store, before, key, count=Value(int64_val=1))  # by a process that has not heard of it
    assert answered(store, "v:title", *keys) == [(key, 1) for key in keys]


def test_what_a_removed_field_held_is_there_when_the_field_comes_back(store: FeatureStore) -> None:
    whole, less = item_view("v", COUNT, Field(name="title", dtype=String)), item_view("v", COUNT)
    apply(store, whole)
    write(store, whole, "a", count=Value(int64_val=1), title=Value(string_val="kept"))
    apply(store, less)
    assert read_items(store, store.get_feature_view("v"), ["a"]) == [{"count": Value(int64_val=1)}]
    apply(store, whole)
    assert answered(store, "v:title", "a") == [("kept", 1)]


@pytest.mark.parametrize(
    ("dtype", "value", "other", "others"),
    [
        (Int64, Value(int64_val=1), String, Value(string_val="1")),
        (Float32, Value(float_val=1.5), Float64, Value(double_val=2.5)),
        (
            Array(Int64),
            Value(int64_list_val=Int64List(val=[1])),
            Array(String),
            Value(string_list_val=StringList(val=["1"])),
        ),
        (String, Value(string_val="x"), Array(String), Value(string_list_val=StringList(val=["x"]))),
    ],
    ids=str,
)
def test_a_retyped_field_reads_its_own_values_only(
    store: FeatureStore, dtype: FeastType, value: Value, other: FeastType, others: Value
) -> None:
    one, two = (item_view("v", Field(name="f", dtype=each)) for each in (dtype, other))
    apply(store, one)
    write(store, one, "old", f=value)
    apply(store, two)
    write(store, two, "new", f=others)
    assert read_items(store, store.get_feature_view("v"), ["old", "new"]) == [{}, {"f": others}]
    apply(store, one)
    assert read_items(store, store.get_feature_view("v"), ["old", "new"]) == [{"f": value}, {}]


def test_vectors_of_another_length_have_a_column_of_their_own(store: FeatureStore) -> None:
    views = {dim: item_view("v", Field(name="embedding", dtype=Array(Float32), vector_length=dim)) for dim in (2, 3, 0)}
    vectors = {2: vector(1, 2), 3: vector(1, 2, 3), 0: vector(1, 2, 3, 4)}
    for dim, view in views.items():
        apply(store, view)
        write(store, view, str(dim), embedding=vectors[dim])
    for dim, view in views.items():
        apply(store, view)
        rows = read_items(store, store.get_feature_view("v"), ["2", "3", "0"])
        assert rows == [{"embedding": vectors[dim]} if key == dim else {} for key in (2, 3, 0)]


def test_a_view_that_is_no_longer_declared_keeps_its_rows_with_a_warning(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    going, staying = item_view("going", COUNT), item_view("staying", COUNT)
    apply(store, going, staying)
    write(store, going, "a", count=Value(int64_val=1))
    with caplog.at_level(logging.WARNING):
        apply(store, staying, without=(going,))
    assert "Kept in Cassandra, though no longer declared: going." in caplog.text
    assert tables(store) == [("going", 0), ("staying", 0)]
    apply(store, going, staying)
    assert answered(store, "going:count", "a") == [(1, 1)]


def test_tables_are_dropped_where_the_settings_say_so(open_repo: Open) -> None:
    store = open_repo(drop_removed_tables=True)
    going, near, staying = (item_view(name, COUNT) for name in ("going", "going_v2", "staying"))
    apply(store, going, near, staying)
    write(store, near, "a", count=Value(int64_val=1))
    apply(store, near, staying, without=(going,))
    assert tables(store) == [("going_v2", 0), ("staying", 0)]
    assert answered(store, "going_v2:count", "a") == [(1, 1)]
    with pytest.raises(NotApplied, match=r"^going: "):
        read_items(store, going, ["a"])
    apply(store, going)  # and again, empty, though the statements were prepared on the table before
    write(store, going, "b", count=Value(int64_val=2))
    assert answered(store, "going:count", "a", "b") == [(None, 3), (2, 1)]


def test_teardown_drops_the_tables_of_its_project_alone(open_repo: Open) -> None:
    one, other = open_repo(), open_repo()
    for store in (one, other):
        apply(store, item_view("v", COUNT), item_view("v_v2", COUNT))
    one.teardown()
    assert tables(one) == []
    assert tables(other) == [("v", 0), ("v_v2", 0)]


@pytest.mark.parametrize("workers", [6])
def test_applies_at_the_same_time_all_succeed(open_repo: Open, workers: int) -> None:
    project = f"c{uuid.uuid4().hex[:8]}"
    stores = [open_repo(project=project) for _ in range(workers)]

    def apply_one(n: int) -> None:
        fields = [COUNT, *(Field(name=f"f{i}", dtype=Int64) for i in range(n % 3 + 1))]
        apply(stores[n], item_view("v", *fields), item_view(f"w{n % 2}", COUNT))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(apply_one, range(workers)))
    view = item_view("v", COUNT, *(Field(name=f"f{i}", dtype=Int64) for i in range(3)))
    write(stores[0], view, "a", f2=Value(int64_val=7))
    assert read_items(stores[1], view, ["a"]) == [{"f2": Value(int64_val=7)}]
    assert tables(stores[0]) == [("v", 0), ("w0", 0), ("w1", 0)]


def test_a_plan_prints_what_an_apply_would_execute_and_executes_nothing(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan() -> list[str]:
        capsys.readouterr()
        online(store).plan(store.config, store.registry.proto())
        return capsys.readouterr().out.splitlines()

    apply(store, item_view("v", COUNT))
    assert plan() == []
    store.registry.apply_feature_view(item_view("v", COUNT, Field(name="title", dtype=String)), store.project)
    store.registry.apply_feature_view(item_view("w", COUNT), store.project)
    added, created = plan()
    assert added.startswith("embark: `feast apply` would execute: ALTER TABLE")
    assert added.endswith('ADD IF NOT EXISTS "title__string" text')
    assert created.startswith("embark: `feast apply` would execute: CREATE TABLE IF NOT EXISTS")
    assert tables(store) == [("v", 0)]
    apply(store, item_view("w", COUNT))
    assert not any("CREATE TABLE" in line for line in plan())


def test_views_of_near_equal_names_keep_rows_of_their_own(store: FeatureStore) -> None:
    names = ["x" * 100 + "1", "x" * 100 + "2", "Clicks", "clicks_", "商品ビュー", "顧客ビュー", "é", "e\u0301"]
    views = [item_view(name, Field(name="数", dtype=Int64)) for name in names]
    apply(store, *views)
    for n, view in enumerate(views):
        write(store, view, "a", 数=Value(int64_val=n))
    assert [read_items(store, view, ["a"]) for view in views] == [[{"数": Value(int64_val=n)}] for n in range(8)]


def test_features_may_have_any_name_that_feast_takes(store: FeatureStore) -> None:
    names = [
        "Count",
        "count",
        "select",
        "a b",
        'a"b',
        "a'b",
        "a.b",
        "a:int64",
        "a__int64",
        "a",
        "a?b",
        "%s",
        "🙂",
        "nulls",
    ]
    names.append("x" * 500)
    view = item_view("v", *(Field(name=name, dtype=Int64) for name in names))
    apply(store, view)
    whole = {name: Value(int64_val=n) for n, name in enumerate(names)}
    write(store, view, "a", **whole)
    write(store, view, "b", **dict.fromkeys(names, Value()))
    assert read_items(store, view, ["a", "b"]) == [whole, dict.fromkeys(names, Value())]
    assert read_items(store, view, ["a"], names[::-2]) == [{name: whole[name] for name in names[::-2]}]


def test_versions_of_a_view_have_tables_of_their_own(open_repo: Open) -> None:
    store = open_repo(registry={"enable_online_feature_view_versioning": True}, drop_removed_tables=True)
    first = item_view("v", COUNT)
    apply(store, first)
    stored = store.get_feature_view("v")
    write(store, stored, "a", count=Value(int64_val=1))
    apply(store, item_view("v", COUNT, Field(name="title", dtype=String)))
    second = store.get_feature_view("v")
    assert second.current_version_number == 1
    write(store, second, "a", count=Value(int64_val=2), title=Value(string_val="new"))
    assert answered(store, "v:count", "a") == [(2, 1)]
    assert store.get_online_features(["v@v0:count"], [{"item": "a"}]).to_dict()["count"] == [1]
    answer = store.get_online_features(["v@v1:count", "v@v1:title"], [{"item": "a"}]).to_dict()
    assert (answer["count"], answer["title"]) == ([2], ["new"])
    assert tables(store) == [("v", 0), ("v", 1)]
    near = item_view("v_v1", COUNT)
    apply(store, near)  # a view of its own, not that version
    assert read_items(store, near, ["a"]) == [None]
    apply(store, near, without=(second,))
    assert tables(store) == [("v_v1", 0)]


def test_the_type_of_the_key_is_no_part_of_the_table(store: FeatureStore) -> None:
    assert ITEM.value_type == ValueType.STRING
    view = item_view("v", COUNT)
    apply(store, view)
    write(store, view, "a", count=Value(int64_val=1))
    again = FeatureStore(config=store.config)  # another process
    try:
        assert answered(again, "v:count", "a") == [(1, 1)]
    finally:
        online(again)._cluster.shutdown()
