"""Prepared statements whose values stay bytes, both ways.

The driver turns each float of a `vector<float, n>` into a Python object and back, which costs six times the query. Here
values are bound and answered as Cassandra's own bytes; `feature_repo.online.columns` knows what they mean.
"""

import struct
from collections.abc import Sequence
from typing import Any

from cassandra.cqltypes import BytesType
from cassandra.protocol import ProtocolHandler, ResultMessage
from cassandra.query import UNSET_VALUE, BoundStatement, PreparedStatement

ABSENT = UNSET_VALUE  # a bound value that writes nothing, not even a tombstone

_DriversResult = ProtocolHandler.message_types_by_opcode[ResultMessage.opcode]


class _RawMetadata(list[Any]):
    """Marks the result of a raw statement, on its way from the statement to the connection that decodes the answer."""


class _Result(_DriversResult):  # type: ignore[misc, valid-type]
    """Rows as the driver decodes them, or, for a raw statement, as tuples of bytes and None."""

    _raw = False
    column_metadata: Any

    def recv_results_rows(self, f: Any, protocol_version: Any, user_types: Any, metadata: Any, encryption: Any) -> None:
        self._raw = isinstance(metadata, _RawMetadata)
        super().recv_results_rows(f, protocol_version, user_types, metadata, encryption)

    def recv_results_metadata(self, f: Any, user_types: Any) -> None:
        super().recv_results_metadata(f, user_types)
        if self._raw and self.column_metadata:
            self.column_metadata = [(*column[:3], BytesType) for column in self.column_metadata]


class RawProtocolHandler(ProtocolHandler):  # type: ignore[misc]
    """What a session needs to answer raw statements raw: `session.client_protocol_handler = RawProtocolHandler`."""

    message_types_by_opcode = {**ProtocolHandler.message_types_by_opcode, ResultMessage.opcode: _Result}  # noqa: RUF012


class RawStatement(PreparedStatement):  # type: ignore[misc]
    """A prepared, idempotent statement that takes and answers bytes. Its results are never paged."""

    @property
    def result_metadata(self) -> Any:
        return self._raw_metadata

    @result_metadata.setter
    def result_metadata(self, columns: Any) -> None:  # the driver sets it again after each re-preparation
        self._raw_metadata = _RawMetadata(columns or ())

    def bind_raw(self, values: Sequence[Any], routing_key: bytes | None) -> "RawBound":
        """The statement with `values` (bytes, None or ABSENT), for the replicas of the partition `routing_key`."""
        return RawBound(self, values, routing_key)


class RawBound(BoundStatement):  # type: ignore[misc]
    """A raw statement with its values."""

    def __init__(self, prepared: RawStatement, values: Sequence[Any], routing_key: bytes | None) -> None:
        super().__init__(prepared)
        self.values = self.raw_values = values
        self._partition = routing_key

    @property
    def routing_key(self) -> bytes | None:
        return self._partition  # the driver cannot find it in an `IN ?` or in a batch


def prepare(session: Any, cql: str) -> RawStatement:
    """Prepares `cql` on a session with a RawProtocolHandler.

    Raises:
        cassandra.DriverException, NoHostAvailable: as `session.prepare`.
    """
    statement = session.prepare(cql)
    metadata = statement.__dict__.pop("result_metadata", None)
    # The very object that the driver made: by its own reference it prepares it again where a node forgot it.
    statement.__class__ = RawStatement
    statement.result_metadata = metadata
    statement.is_idempotent = True
    statement.fetch_size = None
    raw: RawStatement = statement
    return raw


def list_of(items: Sequence[bytes]) -> bytes:
    """Cassandra's bytes of a list of blobs: the value of an `IN ?`."""
    pack = struct.Struct(">i").pack
    parts = [pack(len(items))]
    for item in items:
        parts += (pack(len(item)), item)
    return b"".join(parts)


def items_of(stored: bytes) -> list[bytes]:
    """The items in Cassandra's bytes of a list or set."""
    items, at = [], 4
    for _ in range(int.from_bytes(stored[:4], "big")):
        size = int.from_bytes(stored[at : at + 4], "big")
        items.append(stored[at + 4 : at + 4 + size])
        at += 4 + size
    return items


_BIGINT = struct.Struct(">q")


def bigint(number: int) -> bytes:
    """Cassandra's bytes of a bigint."""
    return _BIGINT.pack(number)


def from_bigint(value: bytes) -> int:
    """The number in Cassandra's bytes of a bigint."""
    return int(_BIGINT.unpack(value)[0])
