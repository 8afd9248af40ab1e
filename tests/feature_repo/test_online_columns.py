import math
import struct

import numpy as np
import pytest
from feast import Field
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Bytes, FeastType, Float32, Float64, Int32, Int64, String, UnixTimestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.online.columns import MAX_VECTOR, ValueRefused, Vectors, column, matrix
from tests.feature_repo.feast_values import VALUES, bits, vectors

SCALARS = [Int32, Int64, Float32, Float64, UnixTimestamp, String, Bytes]


@pytest.mark.parametrize("dtype", VALUES, ids=str)
def test_a_value_of_any_type_comes_back_to_the_bit(dtype: FeastType) -> None:
    feature = column(Field(name="f", dtype=dtype))

    @settings(max_examples=30)
    @given(VALUES[dtype])
    def check(value: Value) -> None:
        stored = feature.encode(value)
        assert isinstance(stored, bytes)
        assert bits(feature.decode(stored)) == bits(value)

    check()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (Float32, Value(float_val=-0.0)),
        (Float32, Value(float_val=math.nan)),
        (Float32, Value(float_val=-math.inf)),
        (Float64, Value(double_val=-0.0)),
        (Float64, Value(double_val=math.nan)),
        (Float64, Value(double_val=5e-324)),
        (String, Value(string_val="")),
        (String, Value(string_val="a\0b\x7f\u200f🙂e\u0301")),
        (Bytes, Value(bytes_val=b"")),
        (Bytes, Value(bytes_val=bytes(range(256)))),
        (Int32, Value(int32_val=-(2**31))),
        (Int64, Value(int64_val=2**63 - 1)),
        (UnixTimestamp, Value(unix_timestamp_val=-(2**63))),  # Feast's NaT
    ],
    ids=str,
)
def test_the_ends_of_a_type_come_back_to_the_bit(dtype: FeastType, value: Value) -> None:
    feature = column(Field(name="f", dtype=dtype))
    assert bits(feature.decode(feature.encode(value))) == bits(value)


def test_half_a_surrogate_pair_does_not_even_become_a_value() -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates"):
        Value(string_val="\ud800")


@given(st.integers(1, 70).flatmap(lambda dim: st.lists(vectors(dim), max_size=5).map(lambda many: (dim, many))))
def test_vectors_come_back_to_the_bit_alone_and_together(given_: tuple[int, list[Value]]) -> None:
    dim, values = given_
    codec = Vectors(dim)
    stored = [codec.encode(value) for value in values]
    assert all(len(each) == 4 * dim for each in stored)
    assert [bits(codec.decode(each)) for each in stored] == [bits(value) for value in values]
    assert [bits(Value.FromString(each)) for each in codec.decode_all(stored)] == [bits(value) for value in values]
    expected = np.array([value.float_list_val.val for value in values], dtype=np.float32).reshape(-1, dim)
    assert np.array_equal(matrix(stored, dim).astype(np.float32).view(np.int32), expected.view(np.int32))


@given(vectors(3))
def test_a_vector_is_stored_as_cassandra_has_it(value: Value) -> None:
    assert Vectors(3).encode(value) == struct.pack(">3f", *value.float_list_val.val)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Value(float_list_val=FloatList(val=[1.0] * 3)), "3 floats"),
        (Value(float_list_val=FloatList(val=[1.0] * 5)), "5 floats"),
        (Value(float_list_val=FloatList()), "0 floats"),
        (Value(string_val="0123456789012345"), "a string_val"),
        (Value(bytes_val=b"x" * 18), "a bytes_val"),
    ],
)
def test_a_vector_of_another_length_is_refused_with_both_lengths(value: Value, found: str) -> None:
    with pytest.raises(ValueRefused, match=f"^{found} where 4 floats are declared"):
        column(Field(name="f", dtype=Array(Float32), vector_length=4)).encode(value)


@pytest.mark.parametrize("dtype", SCALARS, ids=str)
def test_a_value_of_another_kind_is_refused_with_both_kinds(dtype: FeastType) -> None:
    feature = column(Field(name="f", dtype=dtype))
    with pytest.raises(ValueRefused, match=r"^a bool_val where a [a-z0-9_]+_val is declared"):
        feature.encode(Value(bool_val=True))


def test_a_vector_longer_than_cassandras_longest_is_refused() -> None:
    assert column(Field(name="f", dtype=Array(Float32), vector_length=MAX_VECTOR)).dim == MAX_VECTOR
    with pytest.raises(ValueError, match=rf"'f' has vector_length={MAX_VECTOR + 1}: Cassandra's vectors hold 8192"):
        column(Field(name="f", dtype=Array(Float32), vector_length=MAX_VECTOR + 1))


def test_a_list_of_floats_without_a_length_may_have_any() -> None:
    feature = column(Field(name="f", dtype=Array(Float32)))
    for length in (0, 1, 7):
        value = Value(float_list_val=FloatList(val=[0.5] * length))
        assert feature.decode(feature.encode(value)) == value


FIELDS = st.builds(
    Field,
    name=st.text(min_size=1, max_size=6) | st.sampled_from(["a", "a:int64", "a:int64:int64", "A", "nulls", "digest"]),
    dtype=st.sampled_from(list(VALUES)),
    vector_length=st.sampled_from([0, 1, 12]),
)


@given(FIELDS, FIELDS)
def test_no_two_features_share_a_column_and_none_has_one_of_ours(one: Field, other: Field) -> None:
    first, second = column(one), column(other)
    assert first.name not in ("entity_key", "event_time", "created_time", "digest", "nulls")
    if one.name != other.name:
        assert first.name != second.name


def test_a_feature_that_changes_its_type_changes_its_column() -> None:
    kinds = [
        column(Field(name="f", dtype=dtype))
        for dtype in (Int32, Int64, Float32, Float64, UnixTimestamp, String, Bytes, Array(String))
    ]
    kinds += [column(Field(name="f", dtype=Array(Float32), vector_length=dim)) for dim in (2, 3)]
    assert len({kind.name for kind in kinds}) == len(kinds)
    for name in {kind.name for kind in kinds}:  # and one name never means two of Cassandra's types
        assert len({kind.cql_type for kind in kinds if kind.name == name}) == 1
