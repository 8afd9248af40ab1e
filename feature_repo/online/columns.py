"""Features as Cassandra columns: the type of each, and its values between protobuf and Cassandra's bytes."""

import re
import struct
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast.field import Field
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    ImageBytes,
    Int32,
    Int64,
    PdfBytes,
    String,
    UnixTimestamp,
)
from numpy.typing import NDArray

MAX_VECTOR = 8192  # Cassandra's own limit of `vector<float, n>`
INDEXABLE_NAME = re.compile(r"[A-Za-z0-9_]{1,48}")  # a storage-attached index takes: StorageAttachedIndex.java


class ValueRefused(ValueError):
    """A value that does not fit its feature; the message says what it is and what is allowed."""


@dataclass(frozen=True, slots=True)
class Column:
    """One feature as a column.

    Attributes:
        feature: the feature's name.
        code: names the type, and ends the column's name: a feature that changes its type gets another column beside
            the old one, since Cassandra changes no column's type and the old values are not ours to lose.
        cql_type: the type in CQL.
        encode: value → Cassandra's bytes; raises ValueRefused.
        decode: Cassandra's bytes → value.
        dim: floats of a vector; 0 of anything else.
        check: tells in less time than `encode` whether that will refuse a value, and raises the same.
    """

    feature: str
    code: str
    cql_type: str
    encode: Callable[[Value], bytes]
    decode: Callable[[bytes], Value]
    dim: int = 0
    check: Callable[[Value], None] | None = None

    @property
    def name(self) -> str:
        """The column's name: never one of ours, which have neither `__` nor a colon.

        Cassandra indexes a column only when its name is short and of letters, digits and underscores; what cannot have
        such a name gets one with a colon, which no other has.
        """
        name = f"{self.feature}__{self.code}"
        return name if INDEXABLE_NAME.fullmatch(name) else f"{self.feature}:{self.code}"


def column(field: Field) -> Column:
    """The column of a feature.

    Scalars are Cassandra's own, so that people and indexes can read them; `Array(Float32)` with a `vector_length` is a
    `vector<float, n>`; all else (lists, sets, maps, structs, decimals …) is Feast's serialized protobuf.

    Raises:
        ValueError: a vector longer than Cassandra's longest.
    """
    if field.dtype == Array(Float32) and field.vector_length:
        if field.vector_length > MAX_VECTOR:
            raise ValueError(
                f"feature {field.name!r} has vector_length={field.vector_length}: Cassandra's vectors hold {MAX_VECTOR}"
            )
        vectors = Vectors(field.vector_length)
        code = f"vector{vectors.dim}"
        cql_type = f"vector<float, {vectors.dim}>"
        return Column(field.name, code, cql_type, vectors.encode, vectors.decode, vectors.dim, vectors.check)
    for dtypes, code, cql_type, (encode, decode) in _SCALARS:
        if field.dtype in dtypes:
            return Column(field.name, code, cql_type, encode, decode)
    code = field.dtype.to_value_type().name.lower()
    return Column(field.name, code, "blob", Value.SerializeToString, Value.FromString)


def swapped(floats: bytes) -> bytes:
    """The bytes of some float32 in the other order.

    Not by numpy: that lets other threads run while it turns even a few bytes, and then waits for its turn, which was
    seen to take 70 µs a vector beside the driver's own thread.
    """
    words = array("f", floats)
    words.byteswap()
    return words.tobytes()


class Vectors:
    """Vectors of `dim` float32 between protobuf (little-endian) and Cassandra (big-endian), by copies of memory."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        example = Value()
        example.float_list_val.val.extend([0.0] * dim)
        self._head = example.SerializeToString()[: -4 * dim]  # protobuf's bytes before the floats themselves

    def check(self, value: Value) -> None:
        kind = value.WhichOneof("val")
        if kind != "float_list_val" or len(value.float_list_val.val) != self.dim:
            found = f"{len(value.float_list_val.val)} floats" if kind == "float_list_val" else f"a {kind}"
            raise ValueRefused(f"{found} where {self.dim} floats are declared (vector_length)")

    def encode(self, value: Value) -> bytes:
        serialized = value.SerializeToString()
        if len(serialized) != len(self._head) + 4 * self.dim or not serialized.startswith(self._head):
            self.check(value)
        return swapped(serialized[len(self._head) :])

    def value(self, vector: NDArray[np.float32]) -> Value:
        """A vector, (dim,), as a value."""
        return Value.FromString(self._head + np.ascontiguousarray(vector, dtype="<f4").tobytes())

    def decode(self, stored: bytes) -> Value:
        return Value.FromString(self._head + np.frombuffer(stored, ">f4").astype("<f4").tobytes())

    def decode_all(self, stored: Iterable[bytes]) -> list[bytes]:
        """Serialized protobuf values: one turn of the bytes for all of them."""
        head, size = self._head, 4 * self.dim
        floats = np.frombuffer(b"".join(stored), ">f4").astype("<f4").tobytes()
        return [head + floats[i : i + size] for i in range(0, len(floats), size)]


def matrix(stored: Iterable[bytes], dim: int) -> NDArray[np.float32]:
    """Stored vectors as one matrix, (N, dim) float32, read-only and in Cassandra's byte order: copying it swaps."""
    return np.frombuffer(b"".join(stored), ">f4").reshape(-1, dim)


def _packed(kind: str, form: str) -> tuple[Callable[[Value], bytes], Callable[[bytes], Value]]:
    packing = struct.Struct(form)

    def encode(value: Value) -> bytes:
        return packing.pack(_of_kind(value, kind))

    def decode(stored: bytes) -> Value:
        return Value(**{kind: packing.unpack(stored)[0]})

    return encode, decode


def _text() -> tuple[Callable[[Value], bytes], Callable[[bytes], Value]]:
    return (
        lambda value: str(_of_kind(value, "string_val")).encode(),
        lambda stored: Value(string_val=stored.decode()),
    )


def _bytes() -> tuple[Callable[[Value], bytes], Callable[[bytes], Value]]:
    return (
        lambda value: bytes(_of_kind(value, "bytes_val")),
        lambda stored: Value(bytes_val=stored),
    )


def _of_kind(value: Value, kind: str) -> Any:
    found = value.WhichOneof("val")
    if found != kind:
        raise ValueRefused(f"a {found} where a {kind} is declared")
    return getattr(value, kind)


_SCALARS: tuple[tuple[tuple[Any, ...], str, str, tuple[Callable[[Value], bytes], Callable[[bytes], Value]]], ...] = (
    ((Int32,), "int32", "int", _packed("int32_val", ">i")),
    ((Int64,), "int64", "bigint", _packed("int64_val", ">q")),
    ((Float32,), "float32", "float", _packed("float_val", ">f")),
    ((Float64,), "float64", "double", _packed("double_val", ">d")),
    ((Bool,), "bool", "boolean", _packed("bool_val", ">?")),
    ((UnixTimestamp,), "seconds", "bigint", _packed("unix_timestamp_val", ">q")),  # since 1970, as Feast keeps them
    ((String,), "string", "text", _text()),
    ((Bytes, PdfBytes, ImageBytes), "bytes", "blob", _bytes()),
)
