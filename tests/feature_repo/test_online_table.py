import json
import re
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from feast import Entity, FeatureView, Field
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.online.table import OnlineTable, quoted, stored_tables, table_name

NAMES = st.text(min_size=1, max_size=80) | st.from_regex(r"[a-z]_?[a-z]?_?[A-Z]?", fullmatch=True)


def view(name: str = "clicks", version: int = 0, **fields: Any) -> FeatureView:
    declared = FeatureView(
        name=name,
        entities=[Entity(name="item", join_keys=["item"], value_type=ValueType.INT64)],
        schema=[Field(name=field, dtype=dtype) for field, dtype in (fields or {"count": Int64}).items()],
        source=None,
        ttl=timedelta(0),
    )
    declared.current_version_number = version
    return declared


class Tables:
    """What `stored_tables` asks a session."""

    def __init__(self, rows: list[tuple[str, str]]) -> None:
        self._rows = rows

    def execute(self, _: str, __: tuple[str, ...]) -> list[tuple[str, str]]:
        return self._rows


@given(NAMES, NAMES, st.integers(0, 3))
def test_cassandra_takes_the_name_of_any_table(project: str, name: str, version: int) -> None:
    assert re.fullmatch(r"[a-z0-9_]{1,48}", table_name(project, name, version))


@given(st.tuples(NAMES, NAMES, st.integers(0, 3)), st.tuples(NAMES, NAMES, st.integers(0, 3)))
def test_no_two_views_share_a_table(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    assert (table_name(*one) == table_name(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b_c"), ("a_b", "c")),
        (("ab", "c"), ("a", "bc")),
        (("shop", "Clicks"), ("shop", "clicks")),
        (("shop", "x" * 200 + "1"), ("shop", "x" * 200 + "2")),
        (("shop", "é"), ("shop", "e\u0301")),
        (("shop", "商品"), ("shop", "顧客")),
        (("shop", "clicks_v2", 0), ("shop", "clicks", 2)),
        (("shop", "clicks", 1), ("shop", "clicks", 2)),
        (("shop", "clicks", 0), ("shop", "clicks", 1)),
    ],
)
def test_near_equal_names_have_tables_of_their_own(one: Any, other: Any) -> None:
    assert table_name(*one) != table_name(*other)


def test_a_name_is_readable_and_stays_what_it_was() -> None:
    assert re.fullmatch(r"shop_clicks_per_day_[0-9a-f]{12}", table_name("shop", "Clicks per-day"))
    assert table_name("shop", "clicks") == table_name("shop", "clicks", 0) == "shop_clicks_8948f3fa26e8"


@pytest.mark.parametrize(("versioned", "version"), [(False, 0), (True, 3)])
def test_a_version_counts_only_where_the_registry_versions_online_tables(versioned: bool, version: int) -> None:
    table = OnlineTable.of("k", "shop", view(version=3), versioned=versioned)
    assert (table.view, table.version) == ("clicks", version)
    assert table.name == table_name("shop", "clicks", version)


def test_a_projected_version_goes_before_the_views_own() -> None:
    asked = view(version=3)
    asked.projection.version_tag = 2
    assert OnlineTable.of("k", "shop", asked, versioned=True).version == 2


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.integers(0, 9))
def test_a_table_tells_whose_it_is(project: str, name: str, version: int) -> None:
    table = OnlineTable("k", "t", project, name, version, {})
    (stored,) = stored_tables(Tables([("t", table.comment())]), "k")
    assert (stored.keyspace, stored.name, stored.project, stored.view, stored.version) == (
        ("k", "t", project, name, version)
    )


@pytest.mark.parametrize("comment", ["", "mine", "[]", "3", "null", '{"project": "shop"}', '"text"', "{"])
def test_somebody_elses_table_is_not_ours(comment: str) -> None:
    assert stored_tables(Tables([("t", comment)]), "k") == []


@given(st.text(min_size=1))
def test_a_quoted_name_ends_where_it_should(name: str) -> None:
    inner = quoted(name)[1:-1]
    assert '"' not in inner.replace('""', "")
    assert inner.replace('""', '"') == name


def test_names_cannot_break_out_of_a_statement() -> None:
    odd = OnlineTable.of("k", "it's", view("o'b\"x", **{'a" int, b': String}), versioned=False)
    assert '"a"" int, b:string" text' in odd.create()
    (comment,) = re.findall(r"comment = '(.*)'$", odd.create())
    assert json.loads(comment.replace("''", "'")) == {"project": "it's", "feature_view": "o'b\"x", "version": 0}
    assert comment.count("'") == 2 * odd.comment().count("'")


def test_a_join_key_is_no_column_though_it_is_listed_among_the_features() -> None:
    listed = view("v", item=Int64, count=Int64)
    listed.entity_columns = [Field(name="item", dtype=Int64)]
    listed.features = [Field(name="item", dtype=Int64), Field(name="count", dtype=Int64)]
    assert list(OnlineTable.of("k", "shop", listed, versioned=False).columns) == ["count"]


def test_what_holds_vectors_is_not_compressed_on_disk() -> None:
    vectors = OnlineTable.of("k", "shop", view("v", embedding=Array(Float32)), versioned=False)
    assert "compression" not in vectors.create()  # a list of any length: Cassandra's default
    fixed = view("v")
    fixed.features = [Field(name="embedding", dtype=Array(Float32), vector_length=3)]
    assert "compression = {'enabled': 'false'}" in OnlineTable.of("k", "shop", fixed, versioned=False).create()


def test_a_table_lacks_only_the_columns_that_it_has_not() -> None:
    fields = [
        Field(name="count", dtype=Int64),
        Field(name="embedding", dtype=Array(Float32), vector_length=3),
    ]
    table = OnlineTable.of("k", "shop", SimpleNamespace(name="clicks", features=fields), versioned=False)
    assert table.missing_columns(["count__int64", "embedding__vector3"]) == []
    assert table.missing_columns(["count__string", "embedding__vector2", "nulls"]) == [
        f'ALTER TABLE {table.cql} ADD IF NOT EXISTS "count__int64" bigint',
        f'ALTER TABLE {table.cql} ADD IF NOT EXISTS "embedding__vector3" vector<float, 3>',
    ]


def test_a_statement_binds_as_many_values_as_it_says() -> None:
    table = OnlineTable.of("k", "shop", view(a=Int64, b=String), versioned=False)
    assert table.insert(["a", "b"]).count("?") == 1 + 4 + 1 + 2 + 1 + 4
    assert table.select(["b"]).startswith('SELECT entity_key, event_time, nulls, "b__string" FROM')
    assert table.delete().count("?") == 3
