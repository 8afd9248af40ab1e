"""What a search asks, how it compares and how it measures: without a server."""

import math
import struct
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from feast import Field
from feast.filter_models import ComparisonFilter, CompoundFilter
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.embeddings import OOV_KEY
from feature_repo.online.asked import Search, words_of
from feature_repo.online.columns import ValueRefused, column
from feature_repo.online.filters import keys, matcher, restrictions
from feature_repo.online.indexes import changes
from feature_repo.online.metrics import COSINE, INNER_PRODUCT, L1, L2, Metric, distances, metric
from feature_repo.online.search import _best
from feature_repo.online.table import OnlineTable
from feature_repo.online.views import FIRST_EVENT, text_key

VECTOR = Field(name="embedding", dtype=Array(Float32), vector_length=3, vector_index=True, vector_search_metric="L2")
TYPES = {"n": Int64, "m": Int32, "f": Float32, "d": Float64, "b": Bool, "t": UnixTimestamp, "s": String, "raw": Bytes}
KINDS = {
    "n": "int64_val",
    "m": "int32_val",
    "f": "float_val",
    "d": "double_val",
    "b": "bool_val",
    "t": "unix_timestamp_val",
    "s": "string_val",
}
COLUMNS = {name: column(Field(name=name, dtype=dtype)) for name, dtype in TYPES.items() if name != "raw"}


def view(*fields: Field) -> Any:
    return SimpleNamespace(
        name="docs", features=list(fields), entity_columns=[Field(name="item", dtype=String)], ttl=None
    )


def table_of(*fields: Field) -> OnlineTable:
    return OnlineTable.of("k", "shop", view(*fields), versioned=False)


def asked(*fields: Field, **given: Any) -> Search:
    wanted: dict[str, Any] = {"requested": [], "embedding": [1.0, 2.0, 3.0], "top_k": 1, **given}
    return Search.of(view(*fields), table_of(*fields), **{"oldest": FIRST_EVENT} | wanted)


def is_(kind: Any, key: str, value: Any) -> ComparisonFilter:
    return ComparisonFilter(type=kind, key=key, value=value)


def test_a_search_finds_no_oov_embedding() -> None:
    search, vector = asked(VECTOR), np.array([1, 2, 3], dtype=">f4").tobytes()
    rows = [(text_key("item", key), bytes(8), None, vector) for key in (OOV_KEY, "cup")]
    assert [found.row[0] for found in _best(search, [], rows)] == [text_key("item", "cup")]


# Filters

NUMBERS = st.sampled_from([-1, 0, 1, 2, -0.0, 0.1, 1.5, math.inf, -math.inf, math.nan, 2**31, 2**53 + 1, 2**63, 1e300])
OPERATORS = st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte"])
NUMERIC = st.builds(is_, OPERATORS, st.sampled_from(["n", "m", "f", "d", "b", "t"]), NUMBERS | st.booleans())
TEXT = st.builds(is_, OPERATORS, st.just("s"), st.sampled_from(["", "a", "b", "é", "x" * 2000, "\ud800"]))
AMONG = st.builds(is_, st.sampled_from(["in", "nin"]), st.sampled_from(["n", "f"]), st.lists(NUMBERS, max_size=3))
FILTERS = st.recursive(
    NUMERIC | TEXT | AMONG,
    lambda inner: st.builds(
        lambda kind, parts: CompoundFilter(type=kind, filters=parts),
        st.sampled_from(["and", "or"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=6,
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "n": st.sampled_from([-1, 0, 1, 2**53 + 1, 2**53]),
        "m": st.sampled_from([-1, 0, 1]),
        "f": st.sampled_from([-0.0, 0.0, 0.1, 1.5, math.inf, math.nan]).map(lambda x: float(np.float32(x))),
        "d": st.sampled_from([-0.0, 0.0, 0.1, 1.5, math.nan, float(2**53)]),
        "b": st.booleans(),
        "t": st.sampled_from([0, 1, 2]),
        "s": st.sampled_from(["", "a", "b", "é", "x" * 2000]),
    },
)


def cassandra_says(restricted: list[tuple[str, bytes]], row: dict[str, Any]) -> bool:
    """What an index makes of the conditions: -0.0 before 0.0, NaN last, and no row without a value."""
    formats = {"int64": ">q", "int32": ">i", "float32": ">f", "float64": ">d", "bool": ">?", "seconds": ">q"}

    def order(number: Any) -> tuple[Any, ...]:
        return (1, 0) if number != number else (0, number, math.copysign(1, number))

    for condition, bound in restricted:
        name, op, _ = condition.split(" ")
        feature, _, code = name.strip('"').rpartition("__")
        if feature not in row:
            return False
        if code == "string":
            assert op == "="
            if row[feature].encode() != bound:
                return False
            continue
        asked_for, found = order(struct.unpack(formats[code], bound)[0]), order(row[feature])
        if not {"=": found == asked_for, ">": found > asked_for, ">=": found >= asked_for}.get(
            op, found < asked_for or (op == "<=" and found == asked_for)
        ):
            return False
    return True


@given(FILTERS, ROWS)
def test_what_cassandra_is_asked_never_leaves_out_a_row_that_passes(given_filter: Any, row: dict[str, Any]) -> None:
    if matcher(given_filter, TYPES)(row.get):
        assert cassandra_says(restrictions(given_filter, COLUMNS, TYPES), row)


@given(FILTERS)
def test_a_column_has_one_equality_or_a_lower_and_an_upper_bound(given_filter: Any) -> None:
    asked_of: dict[str, str] = {}
    for condition, _ in restrictions(given_filter, COLUMNS, TYPES):
        name, op, _ = condition.split(" ")
        asked_of[name] = asked_of.get(name, "") + op[0]
    assert set(asked_of.values()) <= {"=", "<", ">", "<>", "><"}


def reference(of: Any, row: dict[str, Any]) -> bool:
    """Feast's filters, said once more in the plainest way."""
    if isinstance(of, CompoundFilter):
        parts = [reference(part, row) for part in of.filters]
        return all(parts) if of.type == "and" or not parts else any(parts)
    if of.key not in row:
        return False

    def rounded(value: Any) -> Any:
        if of.key != "f" or not isinstance(value, int | float) or abs(value) > 3e38:
            return value
        return float(np.float32(value))

    found, value = row[of.key], of.value
    if of.type in ("in", "nin"):
        return any(found == rounded(each) for each in value) == (of.type == "in")
    value = rounded(value)
    outcomes = {"eq": found == value, "ne": found != value, "gt": found > value, "gte": found >= value}
    return bool({**outcomes, "lt": found < value, "lte": found <= value}[of.type])


@given(FILTERS, ROWS)
def test_filters_mean_what_python_means(given_filter: Any, row: dict[str, Any]) -> None:
    assert matcher(given_filter, TYPES)(row.get) == reference(given_filter, row)


def test_conditions_that_all_must_hold_are_asked_of_cassandra() -> None:
    nested = CompoundFilter(
        type="and",
        filters=[
            is_("eq", "s", "a"),
            CompoundFilter(type="and", filters=[is_("gte", "n", 5), is_("lt", "n", 9), is_("ne", "m", 1)]),
            CompoundFilter(type="or", filters=[is_("eq", "b", True), is_("eq", "d", 1.0)]),
        ],
    )
    assert restrictions(nested, COLUMNS, TYPES) == [
        ('"s__string" = ?', b"a"),
        ('"n__int64" >= ?', struct.pack(">q", 5)),
        ('"n__int64" < ?', struct.pack(">q", 9)),
    ]
    assert keys(nested) == {"s", "n", "m", "b", "d"}
    assert restrictions(nested, {}, TYPES) == []


def test_times_compare_with_datetimes_and_with_seconds() -> None:
    row = {"t": 1_700_000_000}
    moment = datetime.fromtimestamp(1_700_000_000, UTC)
    for value in (moment, moment.replace(tzinfo=None), 1_700_000_000):
        assert matcher(is_("eq", "t", value), TYPES)(row.get)
        assert restrictions(is_("gte", "t", value), COLUMNS, TYPES)[0][1] == struct.pack(">q", 1_700_000_000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (is_("eq", "colour", 1), "filter on 'colour': allowed are b, d, f, m, n, raw, s, t"),
        (is_("eq", "n", "1"), "filter 'eq' on 'n' has '1': allowed are numbers"),
        (is_("gt", "s", 1), "allowed are str"),
        (is_("eq", "s", None), "allowed are str"),
        (is_("eq", "t", "2026-01-01"), "allowed are datetimes and seconds"),
        (is_("eq", "raw", "text"), "allowed are bytes"),
        (is_("in", "s", "abc"), "'in' on 's' needs a list of values, not 'abc'"),
        (is_("nin", "n", 3), "needs a list of values"),
        (is_("in", "n", [1, "2"]), "has '2'"),
        (CompoundFilter(type="or", filters=[is_("eq", "n", 1), is_("eq", "x", 1)]), "filter on 'x'"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_by_name(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matcher(wrong, TYPES)


def test_a_feature_of_many_values_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"feature of type Array\(String\) cannot be compared"):
        matcher(is_("eq", "tags", "a"), {"tags": Array(String)})


# Metrics


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, COSINE) for name in ("cosine", "COSINE", "Cosine", None, "")),
        *((name, L2) for name in ("L2", "l2", "euclidean", "EUCLIDEAN")),
        *((name, INNER_PRODUCT) for name in ("inner_product", "dot", "ip", "IP", "dot_product")),
        ("L1", L1),
    ],
)
def test_metrics_go_by_feasts_names(name: str | None, expected: Metric) -> None:
    assert metric(name) is expected


def test_an_unknown_metric_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="metric 'wrong': allowed are cosine, l2, euclidean, l1, inner_product"):
        metric("wrong")


def test_distances_are_feasts() -> None:
    vectors, query = np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]]), np.array([0.0, 1.0])
    assert distances(L2, vectors, query) == pytest.approx([math.sqrt(18), 1.0, math.sqrt(2)])
    assert distances(L1, vectors, query) == pytest.approx([6.0, 1.0, 2.0])
    assert distances(COSINE, vectors, query) == pytest.approx([0.2, 0.0, 1.0])
    assert distances(INNER_PRODUCT, vectors, query) == pytest.approx([-4.0, -2.0, 0.0])


def test_what_has_no_distance_is_not_a_number() -> None:
    vectors = np.array([[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    assert np.isnan(distances(COSINE, vectors, np.array([1.0, 1.0]))).all()
    assert np.isnan(distances(L2, vectors, np.array([1.0, 1.0]))).tolist() == [False, True, False]


FINITE = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)


@given(FINITE, FINITE)
def test_no_vector_is_nearer_than_itself(one: list[float], other: list[float]) -> None:
    for each in (L1, L2):
        to_itself, to_other = distances(each, np.array([one, other]), np.array(one))
        assert to_itself == 0 <= to_other


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.1e17, -1.1e17])
def test_an_indexed_vector_holds_what_cassandra_can_index(bad: float) -> None:
    feature = table_of(VECTOR).columns["embedding"]
    with pytest.raises(ValueRefused, match="not finite, or has a component beyond"):
        feature.encode(Value(float_list_val=FloatList(val=[1.0, bad, 0.0])))
    unindexed = table_of(Field(name="embedding", dtype=Array(Float32), vector_length=3)).columns["embedding"]
    unindexed.encode(Value(float_list_val=FloatList(val=[1.0, bad, 0.0])))


def test_only_a_cosine_index_refuses_zeros() -> None:
    zeros = Value(float_list_val=FloatList(val=[0.0, -0.0, 0.0]))
    table_of(VECTOR).columns["embedding"].encode(zeros)
    by_cosine = Field(name="embedding", dtype=Array(Float32), vector_length=3, vector_index=True)
    with pytest.raises(ValueRefused, match="all zeros, which has no cosine"):
        table_of(by_cosine).columns["embedding"].encode(zeros)


# Indexes

COUNT = Field(name="count", dtype=Int64)


def test_a_table_is_indexed_by_its_vector_and_its_scalars() -> None:
    table = table_of(VECTOR, COUNT, Field(name="raw", dtype=Bytes), Field(name="tags", dtype=Array(String)))
    count, vector = table.index_changes((), enabled=True)
    assert "(\"embedding__vector3\") USING 'StorageAttachedIndex' WITH OPTIONS" in vector
    assert vector.endswith("{'similarity_function': 'euclidean'}")
    assert count.endswith("(\"count__int64\") USING 'StorageAttachedIndex'")


@pytest.mark.parametrize(
    "field",
    [
        Field(name="embedding", dtype=Array(Float32), vector_length=3),
        Field(name="embedding", dtype=Array(Float32), vector_index=True),
        Field(name="embedding", dtype=Array(Float64), vector_index=True, vector_length=3),
        Field(name="embedding", dtype=Array(Float32), vector_index=True, vector_length=3, vector_search_metric="L1"),
        Field(name="e" * 48, dtype=Array(Float32), vector_index=True, vector_length=3),
        Field(name="ë", dtype=Array(Float32), vector_index=True, vector_length=3),
    ],
    ids=["not asked for", "no length", "float64", "L1", "long name", "strange name"],
)
def test_a_vector_that_cannot_be_indexed_leaves_the_table_without_indexes(field: Field) -> None:
    assert table_of(field, COUNT).indexes == ()


def test_a_changed_metric_drops_the_old_index_before_it_creates_the_new_one() -> None:
    before = table_of(VECTOR, COUNT)
    by_cosine = Field(name="embedding", dtype=Array(Float32), vector_length=3, vector_index=True)
    names = [index.name for index in before.indexes]
    drop, create = table_of(by_cosine, COUNT).index_changes([*names, "somebody_elses"], enabled=True)
    assert drop == f'DROP INDEX IF EXISTS "k"."{names[1]}"'
    assert "cosine" in create
    assert before.index_changes(names, enabled=True) == []
    assert len(before.index_changes(names, enabled=False)) == len(names) == 2


def test_index_names_are_plain_and_differ_between_tables() -> None:
    one, other = (
        OnlineTable.of("k", project, view(VECTOR, COUNT), versioned=False) for project in ("shop", 'it\'s "x"')
    )
    names = [index.name for table in (one, other) for index in table.indexes]
    assert len(set(names)) == 4
    assert all(name.isascii() and name.replace("_", "").isalnum() and len(name) <= 48 for name in names)
    assert changes('"k"', one.name, one.cql, [], [index.name for index in other.indexes]) == []


def test_an_unknown_metric_is_refused_when_it_is_declared() -> None:
    wrong = Field(
        name="embedding", dtype=Array(Float32), vector_index=True, vector_length=3, vector_search_metric="near"
    )
    with pytest.raises(ValueError, match="metric 'near': allowed are"):
        table_of(wrong)


# What is asked


@pytest.mark.parametrize(
    ("given_args", "message"),
    [
        ({"embedding": None}, "needs a vector, keywords"),
        ({"top_k": 0}, "top_k is 0: at least 1"),
        ({"embedding": [1.0, 2.0]}, "'embedding' is searched with one row of 3 floats"),
        ({"embedding": [[1.0, 2.0, 3.0]]}, r"the query has shape \(1, 3\)"),
        ({"embedding": [1.0, math.nan, 0.0]}, "the query is not finite"),
        ({"embedding": [1.0, math.inf, 0.0]}, "the query is not finite"),
        ({"embedding": [1.0, 1e200, 0.0]}, "the query is not finite"),
        ({"embedding": [0.0, 0.0, 0.0], "distance_metric": "cosine"}, "the query is all zeros"),
        ({"distance_metric": "near"}, "metric 'near': allowed are"),
        ({"query_string": " ?! "}, "has no words"),
        ({"query_string": "cat"}, "no String feature"),
        ({"filters": is_("eq", "colour", "red")}, "filter on 'colour': allowed are count, embedding, item"),
    ],
)
def test_a_search_that_cannot_be_is_refused(given_args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(VECTOR, COUNT, **given_args)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([COUNT], "has no vector to search by: it needs one"),
        ([Field(name="e", dtype=String, vector_index=True)], "has no vector"),
        ([VECTOR, Field(name="more", dtype=Array(Float32), vector_index=True)], "has embedding, more to search by"),
    ],
)
def test_a_view_without_one_vector_cannot_be_searched_by_vector(fields: list[Field], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(*fields)


def test_a_search_reads_what_it_answers_and_what_it_finds_by() -> None:
    text = Field(name="title", dtype=String)
    search = asked(
        VECTOR, COUNT, text, requested=["title", "unknown", "title"], query_string="Cat", filters=is_("eq", "count", 1)
    )
    assert search.features == ("title",)
    assert search.reads == ("title", "embedding", "count")
    assert search.words == {"cat"}


def test_an_index_answers_searches_by_its_own_metric_alone() -> None:
    def why(**given_args: Any) -> str | None:
        search = asked(VECTOR, Field(name="title", dtype=String), **given_args)
        return search.why_no_index(vector_enabled=True, most=1000)

    assert why() is None
    assert why(distance_metric="euclidean") is None
    assert why(top_k=1000) is None
    assert why(top_k=1001) == "no index gives more than 1000 rows"
    assert why(distance_metric="cosine") == "the index of 'embedding' is of L2, and cosine is asked for"
    assert why(query_string="x") == "keywords are in no index"
    assert asked(VECTOR).why_no_index(vector_enabled=False, most=1000) == "'embedding' has no index"


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words_of("Straße, STRASSE: it_s 3-4!") == ["strasse", "strasse", "it_s", "3", "4"]
