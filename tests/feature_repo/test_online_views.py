import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from feast import Entity, FeatureView, Field
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from encoders.spec import EncoderSpec
from feature_repo.online.answers import MatrixShape, feast_rows
from feature_repo.online.rows import micros
from feature_repo.online.statements import bigint
from feature_repo.online.table import OnlineTable
from feature_repo.online.views import FIRST_EVENT, MAX_KEY_BYTES, Views, oldest_visible, text_keys
from tests.feature_repo.feast_values import KEY_VALUES

SPEC = EncoderSpec(
    name="mobilenet_v3_small",
    version="v1",
    modality="image",
    dim=4,
    network="torchvision:mobilenet_v3_small",
    weights="seeded:0",
    pinned="seeded:0",
)


def view(*fields: Field, tags: dict[str, str] | None = None, ttl: timedelta | None = None) -> FeatureView:
    item = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)
    schema = [Field(name="item", dtype=String), *fields]
    return FeatureView(name="clicks", entities=[item], schema=schema, source=None, tags=tags, ttl=ttl)


COUNT = Field(name="count", dtype=Int64)
EMBEDDING = Field(name="embedding", dtype=Array(Float32), vector_length=4)


def known(declared: FeatureView, **kwargs: Any) -> Any:
    return Views().of("k", "shop", declared, versioned=False, **kwargs)


def string_key(value: str) -> EntityKey:
    return EntityKey(join_keys=["item"], entity_values=[Value(string_val=value)])


@given(st.text(min_size=1, max_size=10), st.lists(st.text(), max_size=5))
def test_keys_of_text_are_serialized_as_feast_does(join_key: str, values: list[str]) -> None:
    expected = [
        serialize_entity_key(EntityKey(join_keys=[join_key], entity_values=[Value(string_val=value)]))
        for value in values
    ]
    assert list(text_keys(join_key, values)) == expected


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.one_of(*KEY_VALUES.values())), min_size=1, max_size=3))
def test_the_order_of_join_keys_does_not_matter(pairs: list[tuple[str, Value]]) -> None:
    pairs = list(dict(pairs).items())
    forth, back = (
        EntityKey(join_keys=[name for name, _ in order], entity_values=[value for _, value in order])
        for order in (pairs, pairs[::-1])
    )
    assert known(view(COUNT)).serialize(forth) == known(view(COUNT)).serialize(back) == serialize_entity_key(forth)


@given(st.lists(st.one_of(*KEY_VALUES.values()), max_size=4))
def test_rows_of_keys_are_found_as_keys_are(values: list[Value]) -> None:
    keys = [EntityKey(join_keys=["item"], entity_values=[value]) for value in values]
    assert known(view(COUNT)).find_rows([{"item": value} for value in values]) == known(view(COUNT)).find(keys)


def test_a_key_that_no_row_can_have_is_not_looked_up() -> None:
    room = MAX_KEY_BYTES - len(serialize_entity_key(string_key("")))
    longest, longer = string_key("x" * room), string_key("x" * (room + 1))
    rows = [{"item": key.entity_values[0]} for key in (longest, longer)]
    for found in (known(view(COUNT)).find([longest, longer]), known(view(COUNT)).find_rows(rows)):
        assert found == [serialize_entity_key(longest), None]


def test_keys_of_an_encoders_view_are_canonical_and_strange_ones_have_no_row() -> None:
    images = known(view(EMBEDDING, tags=SPEC.to_tags()))
    same = [
        string_key(url) for url in ("HTTP://A.example/x.jpg", "http://a.example:80/x.jpg", "http://a.example/x.jpg")
    ]
    assert len(set(images.find(same))) == 1
    assert images.find([string_key("no url")]) == [None]
    assert images.find_rows([{"item": key.entity_values[0]} for key in same]) == images.find(same)


def test_a_view_is_worked_out_once_for_each_of_its_declarations() -> None:
    views = Views()
    first = views.of("k", "shop", view(COUNT), versioned=False)
    assert views.of("k", "shop", view(COUNT), versioned=False) is first
    others = [
        views.of("k2", "shop", view(COUNT), versioned=False),
        views.of("k", "shop2", view(COUNT), versioned=False),
        views.of("k", "shop", view(COUNT, EMBEDDING), versioned=False),
        views.of("k", "shop", view(Field(name="count", dtype=String)), versioned=False),
        views.of("k", "shop", view(EMBEDDING, tags=SPEC.to_tags()), versioned=False),
        views.of("k", "shop", view(EMBEDDING), versioned=False),
    ]
    assert len({id(each) for each in (first, *others)}) == 7
    assert [each.encoder is not None for each in others] == [False] * 4 + [True, False]


@pytest.mark.parametrize("ttl", [None, timedelta(0)])
def test_without_a_ttl_no_row_is_too_old(ttl: timedelta | None) -> None:
    assert oldest_visible(view(COUNT, ttl=ttl), expire_rows=True) == FIRST_EVENT


def test_no_row_is_too_old_where_the_settings_say_so() -> None:
    assert oldest_visible(view(COUNT, ttl=timedelta(seconds=1)), expire_rows=False) == FIRST_EVENT


@pytest.mark.parametrize("ttl", [timedelta(microseconds=1), timedelta(days=3, seconds=5), timedelta(days=200_000)])
def test_the_oldest_row_to_be_seen_is_one_ttl_old(ttl: timedelta) -> None:
    before = time.time_ns() // 1000
    oldest = oldest_visible(view(COUNT, ttl=ttl), expire_rows=True)
    assert before <= oldest + ttl // timedelta(microseconds=1) <= time.time_ns() // 1000


@pytest.mark.parametrize(("late", "seen"), [(0, True), (1, False)])
def test_a_row_at_the_boundary_of_its_ttl_is_seen(late: int, seen: bool) -> None:
    event = micros(datetime(2026, 1, 1, tzinfo=UTC))
    table = OnlineTable.of("k", "shop", view(COUNT), versioned=False)
    row = (b"key", bigint(event), None, bigint(7))
    ((moment, values),) = feast_rows(table, ["count"], [b"key"], {b"key": row}, event + late)
    assert (moment, values) == (
        (datetime(2026, 1, 1, tzinfo=UTC), {"count": Value(int64_val=7)}) if seen else (None, None)
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([COUNT], r"keys item and vectors none"),
        ([EMBEDDING, Field(name="other", dtype=Array(Float32), vector_length=2)], "vectors embedding, other"),
        ([Field(name="embedding", dtype=Array(Float32))], "vectors none"),
    ],
)
def test_a_view_that_has_no_matrix_says_what_a_matrix_needs(fields: list[Field], told: str) -> None:
    declared = view(*fields)
    with pytest.raises(ValueError, match=rf"'clicks' cannot be read as a matrix: it needs one string join key.*{told}"):
        MatrixShape.of(declared, known(declared).table)


def test_a_view_with_one_vector_has_a_matrix_with_ids_where_it_keeps_them() -> None:
    kept = view(EMBEDDING, Field(name="embedding_id", dtype=Int64))
    assert MatrixShape.of(kept, known(kept).table) == MatrixShape("item", ("embedding", "embedding_id"), 4)
    assert MatrixShape.of(view(EMBEDDING), known(view(EMBEDDING)).table) == MatrixShape("item", ("embedding",), 4)
