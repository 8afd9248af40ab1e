import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Field
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Float32, Int64, String
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.online.columns import ValueRefused, column
from feature_repo.online.encoding import RowEncoder
from feature_repo.online.matrix_rows import MatrixRows
from feature_repo.online.rows import RowToWrite, described, from_micros, key_values, micros
from feature_repo.online.statements import ABSENT, from_bigint, items_of
from feature_repo.online.views import MAX_KEY_BYTES, text_key
from feature_repo.online.writes import WriteFailed, write
from feature_repo.session import StoreUnavailable
from tests.feature_repo.feast_values import KEY_VALUES, VALUES

EVENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
FIELDS = [
    Field(name="count", dtype=Int64),
    Field(name="title", dtype=String),
    Field(name="embedding", dtype=Array(Float32), vector_length=2),
]


@dataclass
class Statement:
    """Binds nothing: a row's values, to be looked at."""

    def bind_raw(self, values: Sequence[Any], routing_key: bytes | None) -> Any:
        return values, routing_key


def encoder(fields: Sequence[Field] = FIELDS) -> RowEncoder:
    return RowEncoder("clicks", {f.name: column(f) for f in fields}, Statement(), serialize_entity_key, text_key)  # type: ignore[arg-type]


def bind(encoding: RowEncoder, row: RowToWrite) -> Any:
    return encoding.bind(encoding.check(row))


def key(value: str = "cat") -> EntityKey:
    return EntityKey(join_keys=["item"], entity_values=[Value(string_val=value)])


def version(values: dict[str, Value], fields: Sequence[Field] = FIELDS) -> tuple[int, int, int]:
    """Event time, created time and digest under which a row is kept."""
    bound: Any = bind(encoder(fields), (key(), values, EVENT, EVENT))
    _, event, created, digest = bound[0][1:5]
    return from_bigint(event), from_bigint(created), from_bigint(digest)


ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
INSTANTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC) | ZONES)


@given(INSTANTS)
def test_microseconds_are_the_time_and_back(moment: datetime) -> None:
    assert from_micros(micros(moment)) == moment
    assert from_micros(micros(moment)).tzinfo is UTC


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_a_time_is_its_microseconds_from_the_year_1_to_9999(moment: int) -> None:
    assert micros(from_micros(moment)) == moment


def test_a_time_without_a_zone_is_utc() -> None:
    assert micros(datetime(1969, 12, 31, 23, 59, 59, 999999)) == -1
    assert micros(datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == 0
    assert from_micros(-1) == datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def test_nanoseconds_of_pandas_are_left_out() -> None:
    assert micros(pd.Timestamp(1_700_000_000_123_456_789, tz="UTC")) == 1_700_000_000_123_456


@given(st.data())
def test_two_rows_have_one_version_where_they_say_the_same(data: st.DataObject) -> None:
    dtypes = data.draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=3))
    fields = [Field(name=f"f{i}", dtype=dtype) for i, dtype in enumerate(dtypes)]
    row = st.fixed_dictionaries({}, optional={f.name: st.just(Value()) | VALUES[f.dtype] for f in fields})
    one, other = data.draw(row), data.draw(row)
    said = [
        {name: value.SerializeToString(deterministic=True) for name, value in each.items()} for each in (one, other)
    ]
    if said[0] == said[1] or data.draw(st.booleans()):
        assert version(one, fields) == version(dict(one), fields)
    if any(one.get(f.name) != other.get(f.name) for f in fields):
        assert version(one, fields) != version(other, fields)


def test_what_is_null_differs_from_what_is_not_written_and_from_what_is_empty() -> None:
    versions = [version(row) for row in ({}, {"title": Value()}, {"title": Value(string_val="")})]
    assert len(set(versions)) == 3
    assert version({"title": Value()}) == version({"title": Value(null_val=0)})


@given(st.integers(), st.integers())
def test_of_rows_alike_in_both_times_the_one_with_more_features_is_greater(one: int, other: int) -> None:
    fewer = {"count": Value(int64_val=one % 2**63)}
    more = {"count": Value(int64_val=other % 2**63), "title": Value()}
    assert version(more) > version(fewer)
    # … so a row that is written again after `feast apply` added a feature replaces what had it not.
    assert version(more) > version(fewer, FIELDS[:1])


def test_equal_bytes_in_another_column_are_another_row() -> None:
    renamed = [Field(name="n", dtype=Int64)]
    assert version({"count": Value(int64_val=1)}, FIELDS[:1]) != version({"n": Value(int64_val=1)}, renamed)


def test_a_row_without_a_created_time_was_created_now() -> None:
    before = micros(datetime.now(UTC))
    bound: Any = bind(encoder(), (key(), {}, EVENT, None))
    assert before <= from_bigint(bound[0][3]) <= micros(datetime.now(UTC))


def test_not_a_time_counts_as_no_created_time_and_is_refused_as_an_event_time() -> None:
    before = micros(datetime.now(UTC))
    bound: Any = bind(encoder(), (key(), {}, EVENT, pd.NaT))
    assert from_bigint(bound[0][3]) >= before
    for nothing in (pd.NaT, None):
        with pytest.raises(ValueRefused, match=r"^clicks: item='cat' has no event time$"):
            bind(encoder(), (key(), {}, nothing, EVENT))  # type: ignore[arg-type]


def test_nulls_are_named_in_cassandras_order_and_the_rest_is_left_alone() -> None:
    fields = [Field(name=name, dtype=Int64) for name in ("b", "é", "a", "Z", "🙂")]
    bound: Any = bind(encoder(fields), (key(), {f.name: Value() for f in fields}, EVENT, EVENT))
    assert [name.decode() for name in items_of(bound[0][5])] == ["Z", "a", "b", "é", "🙂"]
    assert bound[0][6:11] == [ABSENT] * 5
    bare: Any = bind(encoder(fields), (key(), {}, EVENT, EVENT))
    assert bare[0][5:11] == [ABSENT] * 6


def test_a_refused_value_is_told_with_view_key_feature_and_what_is_allowed() -> None:
    short = {"embedding": Value(float_list_val=FloatList(val=[1.0]))}
    with pytest.raises(
        ValueRefused, match=r"^clicks: item='cat': feature 'embedding' is 1 floats where 2 floats are declared"
    ):
        bind(encoder(), (key(), short, EVENT, EVENT))
    with pytest.raises(
        ValueRefused, match=r"^clicks: item='cat': feature 'count' is a string_val where a int64_val is declared$"
    ):
        bind(encoder(), (key(), {"count": Value(string_val="1")}, EVENT, EVENT))


def test_features_that_the_view_has_not_are_refused_by_name() -> None:
    with pytest.raises(ValueRefused, match=r"^clicks: item='cat' has features that the view has not: a, b$"):
        bind(encoder(), (key(), {"b": Value(), "count": Value(), "a": Value()}, EVENT, EVENT))


def test_join_keys_among_the_values_are_left_out() -> None:
    bound: Any = bind(encoder(), (key(), {"item": Value(string_val="cat"), "count": Value(int64_val=1)}, EVENT, EVENT))
    plain: Any = bind(encoder(), (key(), {"count": Value(int64_val=1)}, EVENT, EVENT))
    assert bound == plain


def test_a_key_that_no_partition_can_have_is_refused_with_its_size() -> None:
    room = 65535 - len(serialize_entity_key(key("")))
    bind(encoder(), (key("x" * room), {}, EVENT, EVENT))
    with pytest.raises(
        ValueRefused, match=r"^clicks: the key item='x{80,96}… takes 65536 bytes; Cassandra's hold 65535"
    ):
        bind(encoder(), (key("x" * (room + 1)), {}, EVENT, EVENT))


@given(st.lists(st.one_of(*KEY_VALUES.values()), max_size=3))
def test_any_key_can_be_described_in_one_short_line(values: list[Value]) -> None:
    names = [f"k{i}" for i in range(len(values))]
    told = EntityKey(join_keys=names, entity_values=values)
    assert list(key_values(told)) == names
    assert "\n" not in described(told)
    assert len(described(told)) <= 105 * len(values) + len("the only key")


def test_a_failed_write_names_three_keys_and_counts_the_rest() -> None:
    rows = [(key(str(i)), {}, EVENT, None) for i in range(10)]
    error = WriteFailed("clicks", rows, {i: TimeoutError("late") for i in (7, 1, 3, 9)})
    assert isinstance(error, StoreUnavailable)
    assert list(error.failures) == [1, 3, 7, 9]
    assert error.keys == [{"item": "1"}, {"item": "3"}, {"item": "7"}, {"item": "9"}]
    assert str(error) == (
        "clicks: 4 of 10 rows were not written: item='1': TimeoutError('late'); item='3': TimeoutError('late'); "
        "item='7': TimeoutError('late') and 1 more"
    )


# ── rows whose vectors are one matrix ────────────────────────────────────────────────────────────────────────────────


def matrix_rows(count: int = 3, **changed: Any) -> MatrixRows:
    times = np.arange(count, dtype=np.int64) * 1_000_003 + micros(EVENT)
    return MatrixRows(
        **{
            "join_key": "item",
            "keys": [f"cät {i}" for i in range(count)],
            "feature": "embedding",
            "vectors": np.arange(2 * count, dtype=np.float32).reshape(count, 2),
            "others": {"title": [Value(string_val=f"t{i}") for i in range(count)]},
            "event_time": times,
            "created_time": times + 5,
            **changed,
        }
    )


def test_a_matrix_becomes_the_statements_that_its_rows_become() -> None:
    rows, encoding = matrix_rows(), encoder()
    taken = [encoding.bind(checked) for checked in encoding.check_all(rows)]
    assert taken == [bind(encoding, row) for row in rows]
    assert len(taken) == len(rows) == 3
    assert rows[1:] == [rows[1], rows[2]]


def test_without_a_created_time_all_rows_of_a_matrix_are_created_now() -> None:
    before = micros(datetime.now(UTC))
    checked = encoder().check_all(matrix_rows(created_time=None))
    assert all(before <= from_bigint(row.created) <= micros(datetime.now(UTC)) for row in checked)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vectors": np.zeros((3, 4), np.float32)}, "'embedding' is 4 floats where 2"),
        ({"others": {"colour": [Value(string_val="red")] * 3}}, "features that the view has not: colour"),
        (
            {"others": {"title": [Value(string_val="a"), Value(int64_val=1), Value(string_val="b")]}},
            "'title' is a int64",
        ),
        ({"keys": ["a", "b" * MAX_KEY_BYTES, "c"]}, "the key item='bbb"),
    ],
)
def test_a_matrix_with_a_bad_row_is_refused_by_its_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueRefused, match=message):
        encoder().check_all(matrix_rows(**changed))


def test_a_null_beside_a_vector_is_a_null() -> None:
    rows, encoding = matrix_rows(others={"title": [Value(), Value(string_val="a"), Value()]}), encoder()
    assert [list(row.nulls) for row in encoding.check_all(rows)] == [[b"title"], [], [b"title"]]


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": ["a"]},
        {"vectors": np.zeros((3, 2))},
        {"vectors": np.zeros(3, np.float32)},
        {"created_time": np.zeros(2, np.int64)},
        {"others": {"title": [Value()]}},
        {"event_time": np.array([0, 1, 2**62])},
    ],
)
def test_a_matrix_is_whole(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"keys, columns|years 1 to 9999"):
        matrix_rows(**changed)


# ── on its way ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Answers:
    """A session whose statements are answered when `answer` is called, or at once."""

    def __init__(self, at_once: Callable[[Any], Exception | None] | None = None) -> None:
        self.at_once = at_once
        self.sent: list[Any] = []
        self.waiting: list[Callable[[Exception | None], None]] = []

    def execute_async(self, statement: Any, execution_profile: str) -> "Answers":
        self.sent.append(statement)
        return self

    def add_callbacks(
        self, callback: Any, errback: Any, callback_args: Sequence[Any], errback_args: Sequence[Any]
    ) -> None:
        def answer(error: Exception | None) -> None:
            if error is None:
                callback(None, *callback_args)
            else:
                errback(error, *errback_args)

        if self.at_once:
            answer(self.at_once(self.sent[-1]))
        else:
            self.waiting.append(answer)


@pytest.mark.parametrize("concurrency", [1, 3, 20_000])
def test_answers_that_come_at_once_are_no_deeper_than_one(concurrency: int) -> None:
    session, heard = Answers(lambda n: TimeoutError("late") if n % 1000 == 7 else None), []
    failures = write(session, iter(range(10_000)), concurrency, heard.append)  # type: ignore[arg-type]
    assert session.sent == list(range(10_000))
    assert sorted(failures) == list(range(7, 10_000, 1000))
    assert sum(heard) == 10_000


def test_a_statement_that_cannot_be_made_is_told_and_nothing_follows() -> None:
    def statements() -> Iterator[int]:
        yield 0
        raise ValueError("no row")

    session = Answers(lambda _: None)
    with pytest.raises(ValueError, match="no row"):
        write(session, statements(), 4, None)  # type: ignore[arg-type]
    assert session.sent == [0]


def test_a_child_does_not_go_on_with_its_parents_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Answers()
    parent = threading.Thread(target=write, args=(session, iter(range(5)), 2, None))
    parent.start()
    while len(session.waiting) < 2:
        time.sleep(0.001)
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        session.waiting[0](ConnectionError("closed in the child"))
    assert session.sent == [0, 1]
    while session.waiting:
        session.waiting.pop(0)(None)
    parent.join(10)
    assert not parent.is_alive()
    assert session.sent == [0, 1, 2, 3, 4]
