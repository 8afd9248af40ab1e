"""Values of every Feast type, for properties of what stores them."""

import json
import uuid
from typing import Any

from feast import types
from feast.protos.feast.types.Value_pb2 import (
    BoolList,
    BytesList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    Map,
    MapList,
    RepeatedValue,
    ScalarMap,
    StringList,
    Value,
    ZonedTimestamp,
)
from feast.types import Array, FeastType, Set, Struct
from hypothesis import strategies as st

SECONDS = st.integers(-2_000_000_000, 4_000_000_000)  # 1906 to 2096, which Feast can make dates of
FLOATS = st.floats(width=32)  # NaN, infinities, -0.0 and subnormal ones among them
UUIDS = st.uuids().map(str)
TIME_UUIDS = st.integers(0, 2**60 - 1).map(lambda n: str(uuid.UUID(int=n << 68 | 1 << 76 | 1 << 63)))
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False).map(str)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
).map(json.dumps)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)

# Feast type → the field of `Value`, its elements, and the message of a list of them.
_PRIMITIVES: dict[FeastType, tuple[str, st.SearchStrategy[Any], Any]] = {
    types.Int32: ("int32", INT32, Int32List),
    types.Int64: ("int64", INT64, Int64List),
    types.Float32: ("float", FLOATS, FloatList),
    types.Float64: ("double", st.floats(), DoubleList),
    types.Bool: ("bool", st.booleans(), BoolList),
    types.UnixTimestamp: ("unix_timestamp", SECONDS, Int64List),
    types.String: ("string", st.text(), StringList),
    types.Bytes: ("bytes", st.binary(), BytesList),
    types.Uuid: ("uuid", UUIDS, StringList),
    types.TimeUuid: ("time_uuid", TIME_UUIDS, StringList),
    types.Decimal: ("decimal", DECIMALS, StringList),
    types.Json: ("json", JSON, StringList),
}


def _scalar(kind: str, elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Value]:
    return elements.map(lambda each: Value(**{f"{kind}_val": each}))


def _many(kind: str, form: str, elements: st.SearchStrategy[Any], message: Any) -> st.SearchStrategy[Value]:
    unique = {"unique_by": repr} if form == "set" else {}
    return st.lists(elements, max_size=4, **unique).map(  # type: ignore[arg-type]
        lambda chosen: Value(**{f"{kind}_{form}_val": message(val=chosen)})
    )


def _wrapped(kind: str, values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.lists(values, max_size=3).map(lambda chosen: Value(**{kind: RepeatedValue(val=chosen)}))


_LEAVES = st.one_of(*(_scalar(types_[0], types_[1]) for types_ in list(_PRIMITIVES.values())[:7]))
_MAPS = st.dictionaries(st.text(max_size=5), _LEAVES, max_size=3).map(lambda chosen: Map(val=chosen))

VALUES: dict[FeastType, st.SearchStrategy[Value]] = {
    **{dtype: _scalar(kind, elements) for dtype, (kind, elements, _) in _PRIMITIVES.items()},
    types.PdfBytes: _scalar("bytes", st.binary()),
    types.ImageBytes: _scalar("bytes", st.binary()),
    types.Map: _MAPS.map(lambda chosen: Value(map_val=chosen)),
    types.ScalarMap: st.lists(st.tuples(INT64, _LEAVES), max_size=3, unique_by=lambda pair: pair[0]).map(
        lambda pairs: _scalar_map(pairs)
    ),
    types.ZonedTimestamp: st.tuples(SECONDS, st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"])).map(
        lambda told: Value(zoned_timestamp_val=ZonedTimestamp(unix_timestamp=told[0], zone=told[1]))
    ),
    Struct({"a": types.Int64, "b": types.String}): st.tuples(INT64, st.text()).map(
        lambda told: Value(
            struct_val=Map(val={"a": Value(int64_val=told[0]), "b": Value(string_val=told[1])}),
        )
    ),
    Array(types.Map): st.lists(_MAPS, max_size=3).map(lambda chosen: Value(map_list_val=MapList(val=chosen))),
    Array(Struct({"a": types.Int64})): st.lists(INT64, max_size=3).map(
        lambda chosen: Value(struct_list_val=MapList(val=[Map(val={"a": Value(int64_val=n)}) for n in chosen]))
    ),
    **{
        Array(dtype): _many(kind, "list", elements, message) for dtype, (kind, elements, message) in _PRIMITIVES.items()
    },
    **{
        Set(dtype): _many(kind, "set", elements, type(getattr(Value(), f"{kind}_set_val")))
        for dtype, (kind, elements, _) in _PRIMITIVES.items()
        if dtype != types.Json
    },
    Array(Array(types.Int64)): _wrapped("list_val", _many("int64", "list", INT64, Int64List)),
    Array(Set(types.String)): _wrapped("list_val", _many("string", "set", st.text(), type(Value().string_set_val))),
    Set(Array(types.Float64)): _wrapped("set_val", _many("double", "list", st.floats(), DoubleList)),
}


def _scalar_map(pairs: list[tuple[int, Value]]) -> Value:
    chosen = ScalarMap()
    for key, value in pairs:
        entry = chosen.val.add()
        entry.key.int64_key = key
        entry.value.CopyFrom(value)
    return Value(scalar_map_val=chosen)


def vectors(dim: int) -> st.SearchStrategy[Value]:
    """Values of an `Array(Float32)` with `vector_length=dim`."""
    return st.lists(FLOATS, min_size=dim, max_size=dim).map(lambda each: Value(float_list_val=FloatList(val=each)))


KEY_VALUES: dict[FeastType, st.SearchStrategy[Value]] = {
    types.String: _scalar("string", st.text()),
    types.Bytes: _scalar("bytes", st.binary()),
    types.Int32: _scalar("int32", INT32),
    types.Int64: _scalar("int64", INT64),
    types.UnixTimestamp: _scalar("unix_timestamp", SECONDS),
}


def bits(value: Any) -> Any:
    """Something that is equal where two values are the same to the bit: NaN is NaN, and -0.0 is not 0.0."""
    return None if value is None else value.SerializeToString(deterministic=True)
