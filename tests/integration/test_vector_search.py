"""Searching by vector, keywords and filters on a real Cassandra."""

import logging
import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast import FeatureStore, FeatureView, Field
from feast.filter_models import ComparisonFilter, CompoundFilter
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Float32, Float64, Int64, String, UnixTimestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embark.servers import LocalServers
from feature_repo.online.columns import ValueRefused
from feature_repo.online.metrics import distances, metric
from feature_repo.online.search import ScanLimitReached, _warn_of_scan
from tests.integration.online_repos import ITEM, item, item_view, online, open_store, vector, write_online_repo

pytestmark = pytest.mark.servers

EVENT = datetime(2026, 1, 1, tzinfo=UTC)
DIM, MANY, FEW = 16, 2000, 200
RNG = np.random.default_rng(7)
VECTORS = RNG.standard_normal((MANY, DIM)).astype(np.float32)
QUERY = RNG.standard_normal(DIM).tolist()
BUILD_SECONDS = 120  # for an index over what is there, on a slow machine

Row = dict[str, Any]


def embedding(of: str | None = None, *, index: bool = True, length: int = DIM) -> Field:
    return Field(
        name="embedding", dtype=Array(Float32), vector_length=length, vector_index=index, vector_search_metric=of
    )


SCALARS = {
    "colour": (String, "string_val"),
    "year": (Int64, "int64_val"),
    "price": (Float32, "float_val"),
    "score": (Float64, "double_val"),
    "sold": (Bool, "bool_val"),
    "seen": (UnixTimestamp, "unix_timestamp_val"),
}
FIELDS = [Field(name=name, dtype=dtype) for name, (dtype, _) in SCALARS.items()]
BY_METRIC = {of: item_view(f"by_{of}", embedding(of)) for of in ("cosine", "L2", "inner_product")}
FILTERED = item_view("filtered", embedding("L2"), *FIELDS)
BARE = item_view("bare", Field(name="embedding", dtype=Array(Float32), vector_index=True), *FIELDS)


def row_of(i: int) -> Row:
    """Every tenth row lacks a colour, and prices and scores are of the awkward kind."""
    return {
        "colour": None if i % 10 == 9 else ["red", "green", "blue", "", "x" * 9000][i % 5],
        "year": 2000 + i % 30,
        "price": float(np.float32([0.1, -0.0, 0.0, 2.5][i % 4])),
        "score": [0.5, -0.0, 0.0, math.inf, math.nan][i % 5],
        "sold": i % 3 == 0,
        "seen": 1_700_000_000 + i,
    }


def values(i: int, row: Row, floats: NDArray[np.float32] | None = None) -> dict[str, Value]:
    told = {name: Value() if row[name] is None else Value(**{SCALARS[name][1]: row[name]}) for name in row}
    return {"embedding": vector(*(VECTORS[i] if floats is None else floats).tolist()), **told}


def write(store: FeatureStore, view: FeatureView, rows: dict[str, dict[str, Value]], moment: datetime = EVENT) -> None:
    data = [(item(key), row, moment, None) for key, row in rows.items()]
    online(store).online_write_batch(store.config, view, data, None)


@pytest.fixture(scope="module")
def store(servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    with open_store(write_online_repo(tmp_path_factory.mktemp("search"), servers)) as store:
        store.apply([ITEM, *BY_METRIC.values(), FILTERED, BARE])
        for view in BY_METRIC.values():
            write(store, view, {str(i): {"embedding": vector(*VECTORS[i].tolist())} for i in range(MANY)})
        for view in (FILTERED, BARE):
            write(store, view, {str(i): values(i, row_of(i)) for i in range(FEW)})
        yield store


@pytest.fixture
def warnings_of_scans() -> Iterator[list[str]]:
    """What the store warned of, so far."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, of = Ear(), logging.getLogger("feature_repo.online.search")
    _warn_of_scan.cache_clear()
    of.addHandler(ear)
    yield heard
    of.removeHandler(ear)


def applied(store: FeatureStore, view: FeatureView) -> FeatureView:
    """Applies a view, and waits until an index over rows that are there is built."""
    store.apply([ITEM, view])
    session = online(store)._get_session(store.config)
    deadline = time.monotonic() + BUILD_SECONDS
    while time.monotonic() < deadline:
        states = session.execute("SELECT is_queryable FROM system_views.sai_column_indexes")
        if all(queryable for (queryable,) in states):
            return view
        time.sleep(0.2)
    raise AssertionError(f"no index after {BUILD_SECONDS} s")


def search(store: FeatureStore, view: FeatureView, **given_args: Any) -> list[Any]:
    wanted = {"requested_features": [], "embedding": QUERY, "top_k": 10, **given_args}
    return list(online(store).retrieve_online_documents_v2(store.config, view, **wanted))


def found(documents: list[Any]) -> list[str]:
    return [key.entity_values[0].string_val for _, key, _ in documents]


def exact(of: str, rows: NDArray[np.float32], query: Any = QUERY) -> NDArray[np.float64]:
    return distances(metric(of), rows.astype(np.float64), np.asarray(query, dtype=np.float64))


# By index


@pytest.mark.parametrize("of", BY_METRIC)
def test_the_index_finds_nearly_what_numpy_finds(store: FeatureStore, of: str) -> None:
    recalls = []
    for query in RNG.standard_normal((20, DIM)):
        far = exact(of, VECTORS, query)
        documents = search(store, BY_METRIC[of], embedding=query.tolist(), distance_metric=of)
        told = [values["distance"].float_val for _, _, values in documents]
        assert told == pytest.approx([far[int(key)] for key in found(documents)], rel=1e-5, abs=1e-5)
        assert told == sorted(told)
        recalls.append(len({int(key) for key in found(documents)} & set(np.argsort(far)[:10].tolist())) / 10)
    assert np.mean(recalls) >= 0.9


def test_the_index_answers_without_reading_every_row(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, warnings_of_scans: list[str]
) -> None:
    monkeypatch.setattr(store.config.online_store, "vector_scan_limit", 1)
    assert len(search(store, BY_METRIC["L2"])) == 10
    assert warnings_of_scans == []


def test_what_is_asked_for_comes_back_with_its_time_and_its_distance(store: FeatureStore) -> None:
    nearest = int(np.argmin(exact("L2", VECTORS[:FEW])))
    ((moment, key, row),) = search(store, FILTERED, requested_features=["embedding", "colour", "no_such"], top_k=1)
    assert (moment, key) == (EVENT, item(str(nearest)))
    wanted = values(nearest, row_of(nearest))
    assert row == {
        "embedding": wanted["embedding"],
        "colour": wanted["colour"],
        "distance": Value(float_val=exact("L2", VECTORS[:FEW])[nearest]),
    }


# Filters, by index and by reading every row


def passes(of: Any, row: Row) -> bool:
    if isinstance(of, CompoundFilter):
        parts = [passes(part, row) for part in of.filters]
        return all(parts) if of.type == "and" or not parts else any(parts)
    value, told = row[of.key], of.value
    if value is None:
        return False
    if of.type in ("in", "nin"):
        return (value in told) == (of.type == "in")
    outcomes = {"eq": value == told, "ne": value != told}
    if of.type not in outcomes:
        outcomes = {"gt": value > told, "gte": value >= told, "lt": value < told, "lte": value <= told}
    return bool(outcomes[of.type])


def is_(kind: Any, key: str, value: Any) -> ComparisonFilter:
    return ComparisonFilter(type=kind, key=key, value=value)


def both(kind: Any, *parts: Any) -> CompoundFilter:
    return CompoundFilter(type=kind, filters=list(parts))


EXAMPLES = [
    is_("eq", "colour", "red"),
    is_("eq", "colour", ""),
    is_("eq", "colour", "x" * 9000),
    is_("ne", "colour", "red"),
    is_("gt", "colour", "green"),
    is_("in", "colour", ["red", "blue"]),
    is_("nin", "colour", ["red", "blue"]),
    is_("eq", "year", 2007),
    is_("gte", "year", 2027.5),
    both("and", is_("gte", "year", 2005), is_("lt", "year", 2010), is_("gt", "year", 2006)),
    both("or", is_("eq", "year", 2003), both("and", is_("eq", "colour", "green"), is_("eq", "sold", True))),
    is_("eq", "price", float(np.float32(0.1))),
    is_("eq", "price", 0.0),
    is_("lte", "price", -0.0),
    is_("gt", "score", 0),
    is_("ne", "score", 0.5),
    is_("eq", "sold", False),
    is_("lt", "seen", 1_700_000_010),
    is_("eq", "colour", "no such"),
]
RANDOM = st.recursive(
    st.sampled_from(EXAMPLES)
    | st.builds(is_, st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte"]), st.just("year"), st.integers(1999, 2031)),
    lambda inner: st.builds(both, st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=4,
)


def check_filter(store: FeatureStore, view: FeatureView, of: Any) -> None:
    wanted = {str(i) for i in range(FEW) if passes(of, row_of(i))}
    documents = search(store, view, filters=of, top_k=FEW, distance_metric="L2")
    assert set(found(documents)) == wanted
    assert len(documents) == len(wanted)
    nearest = sorted(wanted, key=lambda key: exact("L2", VECTORS[[int(key)]])[0])[:5]
    assert found(search(store, view, filters=of, top_k=5, distance_metric="L2")) == nearest


@pytest.mark.parametrize("view", [FILTERED, BARE], ids=["index", "scan"])
@pytest.mark.parametrize("of", EXAMPLES, ids=lambda of: str(getattr(of, "key", of.type)) + f" {of.type}")
def test_a_filter_finds_what_plain_python_finds(store: FeatureStore, view: FeatureView, of: Any) -> None:
    check_filter(store, view, of)


@pytest.mark.parametrize("view", [FILTERED, BARE], ids=["index", "scan"])
def test_any_filter_finds_what_plain_python_finds(store: FeatureStore, view: FeatureView) -> None:
    @settings(max_examples=40)
    @given(RANDOM)
    def check(of: Any) -> None:
        check_filter(store, view, of)

    check()


def test_a_filter_may_name_the_join_key(store: FeatureStore) -> None:
    assert sorted(found(search(store, FILTERED, filters=is_("in", "item", ["3", "7", "none"])))) == ["3", "7"]


def test_a_filter_that_only_few_of_the_nearest_pass_falls_back_to_reading_every_row(
    store: FeatureStore, warnings_of_scans: list[str]
) -> None:
    farthest = [str(i) for i in np.argsort(exact("L2", VECTORS))[-3:]]
    documents = search(store, BY_METRIC["L2"], filters=is_("in", "item", farthest), top_k=3)
    assert found(documents) == farthest
    assert len(warnings_of_scans) == 1
    assert "fewer than top_k of the index's nearest 1000 rows" in warnings_of_scans[0]


# By reading every row


@pytest.mark.parametrize("of", ["cosine", "L2", "L1", "inner_product"])
@pytest.mark.parametrize("name", ["by_L2", "bare"])
def test_reading_every_row_is_exact(store: FeatureStore, name: str, of: str, warnings_of_scans: list[str]) -> None:
    view, rows = (BY_METRIC["L2"], VECTORS) if name == "by_L2" else (BARE, VECTORS[:FEW])
    if (name, of) == ("by_L2", "L2"):
        pytest.skip("its index answers")
    far = exact(of, rows)
    for _ in range(2):
        documents = search(store, view, distance_metric=of, top_k=20)
        assert found(documents) == [str(i) for i in np.argsort(far)[:20]]
        assert [values["distance"].float_val for _, _, values in documents] == pytest.approx(
            np.sort(far)[:20], abs=1e-5
        )
    assert len(warnings_of_scans) == 1  # not for each search
    assert f"Searches of {name} in project {store.project} read every row" in warnings_of_scans[0]


def test_more_than_an_index_gives_is_found_too(store: FeatureStore) -> None:
    assert len(set(found(search(store, BY_METRIC["L2"], top_k=1500)))) == 1500


def test_too_many_rows_to_read_name_what_to_declare(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.config.online_store, "vector_scan_limit", FEW - 1)
    message = "bare: this search reads every row, since 'embedding' has no index.*vector_scan_limit=199.*declare"
    with pytest.raises(ScanLimitReached, match=message):
        search(store, BARE)
    monkeypatch.setattr(store.config.online_store, "vector_scan_limit", FEW)
    assert len(search(store, BARE)) == 10


def test_a_query_of_another_length_than_an_undeclared_vector_names_the_row(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match=r"the query has 2 floats and feature 'embedding' of \{'item': .* has 16"):
        search(store, BARE, embedding=[1.0, 2.0])


def test_an_empty_view_has_nothing_to_find(store: FeatureStore) -> None:
    view = applied(store, item_view("empty", embedding("L2"), Field(name="title", dtype=String)))
    assert search(store, view) == []
    assert search(store, view, distance_metric="L1") == []
    assert search(store, view, embedding=None, query_string="word") == []


def test_rows_without_a_vector_or_without_a_distance_are_not_found(store: FeatureStore) -> None:
    view = item_view("holes", Field(name="embedding", dtype=Array(Float32), vector_length=2))
    store.apply([ITEM, view])
    rows = {
        "null": {"embedding": Value()},
        "unwritten": {},
        "zero": {"embedding": vector(0.0, 0.0)},
        "nan": {"embedding": vector(math.nan, 1.0)},
        "infinite": {"embedding": vector(math.inf, 1.0)},
        "whole": {"embedding": vector(1.0, 1.0)},
    }
    write(store, view, rows)
    assert found(search(store, view, embedding=[1.0, 0.0], distance_metric="cosine")) == ["whole"]
    assert found(search(store, view, embedding=[1.0, 0.5], distance_metric="L2")) == ["whole", "zero", "infinite"]


# Keywords


def test_keywords_must_all_be_there_and_the_text_with_the_largest_share_of_them_comes_first(
    store: FeatureStore,
) -> None:
    text = [Field(name="title", dtype=String), Field(name="body", dtype=String)]
    view = applied(store, item_view("texts", embedding("L2", length=2), *text))
    texts = {
        "all": ("Red cat", ""),
        "across": ("red", "a very large CAT, asleep"),
        "half": ("red dog", "not a feline"),
        "near": ("red", "a very large cat, asleep"),
    }
    places = {"all": (9.0, 9.0), "across": (2.0, 2.0), "half": (0.0, 0.0), "near": (1.0, 1.0)}
    write(
        store,
        view,
        {
            key: {
                "title": Value(string_val=title),
                "body": Value(string_val=body),
                "embedding": vector(*places[key]),
            }
            for key, (title, body) in texts.items()
        },
    )
    documents = search(store, view, embedding=None, query_string="cat RED!")
    assert found(documents) == ["all", "near", "across"]  # equal ranks: by key, always alike
    assert [values["text_rank"].float_val for _, _, values in documents] == pytest.approx([1.0, 2 / 6, 2 / 6])
    assert all("distance" not in values for _, _, values in documents)
    hybrid = search(store, view, embedding=[0.0, 0.0], query_string="cat red", top_k=2)
    assert found(hybrid) == ["all", "near"]  # equal ranks: the nearer one
    assert hybrid[1][2]["distance"].float_val == pytest.approx(math.sqrt(2))
    assert found(search(store, view, query_string="cat", embedding=None, filters=is_("eq", "title", "Red cat"))) == [
        "all"
    ]


# Which rows


@pytest.mark.parametrize("index", [True, False], ids=["index", "scan"])
def test_rows_older_than_the_ttl_are_not_found(store: FeatureStore, index: bool) -> None:
    view = applied(
        store, item_view(f"aged_{index}".lower(), embedding("L2", index=index, length=2), ttl=timedelta(hours=1))
    )
    now = datetime.now(UTC)
    write(store, view, {f"old {i}": {"embedding": vector(0.0, i / 100)} for i in range(50)}, now - timedelta(hours=2))
    write(store, view, {f"new {i}": {"embedding": vector(1.0, float(i))} for i in range(3)}, now)
    assert found(search(store, view, embedding=[0.0, 0.0], top_k=3)) == ["new 0", "new 1", "new 2"]
    assert found(search(store, view, embedding=[0.0, 0.0], top_k=9)) == ["new 0", "new 1", "new 2"]


def test_an_overwritten_row_is_found_once_and_where_it_is_now(store: FeatureStore) -> None:
    view = applied(store, item_view("moving", embedding("L2", length=2)))
    for moment in range(4):  # and an index that is made anew puts what is there on disk
        write(
            store,
            view,
            {str(i): {"embedding": vector(float(i), float(moment))} for i in range(300)},
            EVENT + timedelta(seconds=moment),
        )
        if moment == 1:
            view = applied(store, item_view("moving", embedding("cosine", length=2)))
            view = applied(store, item_view("moving", embedding("L2", length=2)))
    write(store, view, {"5": {"embedding": vector(-1.0, -1.0)}}, EVENT - timedelta(days=1))  # a late, lesser event
    documents = search(store, view, embedding=[0.0, 0.0], requested_features=["embedding"], top_k=300)
    assert sorted(found(documents), key=int) == [str(i) for i in range(300)]
    assert {tuple(values["embedding"].float_list_val.val)[1] for _, _, values in documents} == {3.0}
    assert found(search(store, view, embedding=[0.0, 0.0], top_k=4)) == ["0", "1", "2", "3"]


def test_a_deleted_row_is_not_found(store: FeatureStore) -> None:
    view = applied(store, item_view("gone", embedding("L2", length=2)))
    write(store, view, {str(i): {"embedding": vector(float(i), 0.0)} for i in range(5)})
    online(store).online_delete(store.config, view, [(item("0"), EVENT), (item("2"), EVENT)])
    assert found(search(store, view, embedding=[0.0, 0.0], top_k=5)) == ["1", "3", "4"]


# The schema


def test_an_index_comes_changes_and_goes_with_what_is_declared(
    store: FeatureStore, warnings_of_scans: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def view(field: Field) -> FeatureView:
        return item_view("changing", field, Field(name="year", dtype=Int64))

    def indexed() -> dict[str, Any]:
        rows = (
            online(store)
            ._get_session(store.config)
            .execute(
                "SELECT table_name, options FROM system_schema.indexes WHERE keyspace_name = %s",
                (store.config.online_store.keyspace,),
            )
        )
        return {o["target"]: o.get("similarity_function") for table, o in rows if f"{store.project}_changing" in table}

    plain = applied(store, view(embedding(index=False)))
    write(store, plain, {str(i): {"embedding": vector(*VECTORS[i].tolist())} for i in range(FEW)})
    assert indexed() == {}
    nearest = [str(i) for i in np.argsort(exact("L2", VECTORS[:FEW]))[:10]]
    for of, similarity in (("L2", "euclidean"), ("COSINE", "cosine"), ("ip", "dot_product"), ("L2", "euclidean")):
        declared = applied(store, view(embedding(of)))
        assert indexed() == {"embedding__vector16": similarity, "year__int64": None}
        assert len(search(store, declared)) == 10
    assert found(search(store, declared)) == nearest
    assert warnings_of_scans == []
    assert found(search(store, applied(store, view(embedding("L1"))))) != []
    assert indexed() == {}
    store.apply([ITEM, view(embedding(index=False))])
    assert found(search(store, plain, distance_metric="L2")) == nearest
    assert len(warnings_of_scans) == 1
    registry = store.registry.proto()
    online(store).plan(store.config, registry)
    assert "INDEX" not in capsys.readouterr().out


def test_a_store_without_vector_enabled_has_no_indexes(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, warnings_of_scans: list[str]
) -> None:
    monkeypatch.setattr(store.config.online_store, "vector_enabled", False)
    view = item_view("disabled", embedding("L2", length=2))
    store.apply([ITEM, view])
    write(store, view, {"a": {"embedding": vector(1.0, 1.0)}})
    assert found(search(store, view, embedding=[0.0, 0.0])) == ["a"]
    assert len(warnings_of_scans) == 1


@pytest.mark.parametrize(
    ("floats", "message"),
    [
        ((0.0, 0.0), "item='bad': feature 'embedding' is all zeros, which has no cosine"),
        ((math.nan, 1.0), "item='bad': feature 'embedding' is not finite"),
        ((1.0, -math.inf), "item='bad': feature 'embedding' is not finite"),
        ((2e17, 1.0), r"item='bad': feature 'embedding' is .* beyond ±1e\+17"),
    ],
)
def test_a_vector_that_the_index_cannot_hold_is_refused_before_anything_is_written(
    store: FeatureStore, floats: tuple[float, float], message: str
) -> None:
    view = applied(store, item_view("strict", embedding(length=2)))
    with pytest.raises(ValueRefused, match=message):
        write(store, view, {"good": {"embedding": vector(1.0, 1.0)}, "bad": {"embedding": vector(*floats)}})
    assert search(store, view, embedding=[1.0, 1.0], top_k=1000) == []


def test_cassandra_itself_fails_such_a_write_without_a_reason(store: FeatureStore) -> None:
    view = applied(store, item_view("strict", embedding(length=2)))
    table = online(store)._view(store.config, view).table
    columns = "entity_key, event_time, created_time, digest, embedding__vector2"
    for text in ("[0, 0]", "[NaN, 1]", "[Infinity, 1]", "[1.1e17, 1]"):
        with pytest.raises(Exception, match="Replica\\(s\\) failed to execute write"):
            online(store)._get_session(store.config).execute(
                f"INSERT INTO {table.cql} ({columns}) VALUES (0x00, 1, 1, 1, {text})"  # noqa: S608
            )


def test_both_of_feasts_calls_answer(store: FeatureStore) -> None:
    nearest = int(np.argmin(exact("L2", VECTORS[:FEW])))
    features = [f"filtered:{name}" for name in ("embedding", "item", "year")]
    newer = store.retrieve_online_documents_v2(features, query=QUERY, top_k=1).to_dict()
    assert newer["item"] == [str(nearest)]
    assert newer["year"] == [2000 + nearest % 30]
    assert newer["distance"] == pytest.approx([exact("L2", VECTORS[:FEW])[nearest]])
    older = store.retrieve_online_documents(QUERY, 3, [*features, "filtered:distance"][:2], "L2").to_dict()
    assert older["item"] == [str(i) for i in np.argsort(exact("L2", VECTORS[:FEW]))[:3]]
    assert older["embedding"][0] == pytest.approx(VECTORS[nearest].tolist())


def test_the_older_call_answers_in_five_parts(store: FeatureStore) -> None:
    ((moment, key, feature, floats, distance),) = online(store).retrieve_online_documents(
        store.config, FILTERED, ["year", "embedding"], QUERY, 1, None
    )
    nearest = int(np.argmin(exact("L2", VECTORS[:FEW])))
    assert (moment, key) == (EVENT, item(str(nearest)))
    assert feature == Value(int64_val=2000 + nearest % 30)
    assert floats == vector(*VECTORS[nearest].tolist())
    assert distance == Value(float_val=exact("L2", VECTORS[:FEW])[nearest])


def test_a_search_under_an_index_that_was_never_applied_says_what_to_do(store: FeatureStore, tmp_path: Path) -> None:
    from feature_repo.session import NotApplied

    with pytest.raises(NotApplied, match="feast apply"):
        search(store, item_view("never_applied", embedding("L2")))
