"""Rows as bound statements: what a table can hold, and what it becomes in Cassandra's bytes."""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.online.columns import Column, ValueRefused
from feature_repo.online.matrix_rows import MatrixRows
from feature_repo.online.rows import RowToWrite, described, is_nat, micros, stamp
from feature_repo.online.statements import ABSENT, RawBound, RawStatement, list_of
from feature_repo.online.views import MAX_KEY_BYTES

SUMMED_AT_ONCE = 4096  # bytes; from 5 KiB on zlib lets other threads run, and waits for its turn


class CheckedRow(NamedTuple):
    """A row that the table can hold: its key and times as Cassandra's bytes, its values as bytes or still to encode."""

    partition: bytes
    event: bytes
    created: bytes
    nulls: Sequence[bytes]
    values: Sequence[Any]  # of each column: bytes, ABSENT, or a Value that was checked


class RowEncoder:
    """Rows of one view as bound statements, in two steps.

    All rows of a batch are checked before the first leaves, so that a bad one stops them all; they are encoded one by
    one while Cassandra is busy with those before.

    Args:
        view: its name, for messages.
        columns: feature → column, in the order of the statement.
        statement: `OnlineTable.insert` of those features, prepared.
        entity_key: serializes a key.
        text_key: the same of a join key and its text.
        ttl: seconds after which Cassandra removes a row; 0: never.
    """

    def __init__(
        self,
        view: str,
        columns: Mapping[str, Column],
        statement: RawStatement,
        entity_key: Callable[[EntityKey], bytes],
        text_key: Callable[[str, str], bytes],
        ttl: int = 0,
    ) -> None:
        self._view = view
        self._columns = columns
        self._statement = statement
        self._entity_key = entity_key
        self._text_key = text_key
        self._ttl = ttl.to_bytes(4, "big")
        self._heads = [_sized(column.name.encode()) for column in columns.values()]

    def check(self, row: RowToWrite) -> CheckedRow:
        """Raises ValueRefused, naming view and key, for a row that the table cannot hold."""
        key, values, event_time, created_time = row
        unknown = values.keys() - self._columns.keys()
        if unknown and (unknown := unknown - set(key.join_keys)):  # Feast gives these among an on-demand view's values
            raise ValueRefused(
                f"{self._view}: {described(key)} has features that the view has not: {', '.join(sorted(unknown))}"
            )
        nulls = []
        stored: list[Any] = []
        for name, column in self._columns.items():
            value = values.get(name)
            if value is None:
                stored.append(ABSENT)
            elif value.WhichOneof("val") in (None, "null_val"):
                nulls.append(name.encode())
                stored.append(ABSENT)
            else:
                try:
                    if column.check is None:
                        stored.append(column.encode(value))
                    else:
                        column.check(value)
                        stored.append(value)
                except (ValueRefused, struct.error) as error:
                    raise ValueRefused(f"{self._view}: {described(key)}: feature {name!r} is {error}") from error
        partition = self._entity_key(key)
        if len(partition) > MAX_KEY_BYTES:
            raise ValueRefused(
                f"{self._view}: the key {described(key)} takes {len(partition)} bytes; Cassandra's hold {MAX_KEY_BYTES}"
            )
        if event_time is None or is_nat(event_time):
            raise ValueRefused(f"{self._view}: {described(key)} has no event time")
        # Without a created time the one written last counts: what is corrected replaces what it corrects.
        if created_time is None or is_nat(created_time):
            created_time = datetime.now(UTC)
        try:
            event, created = stamp(event_time), stamp(created_time)
        except ValueRefused as error:
            raise ValueRefused(f"{self._view}: {described(key)}: {error}") from None
        return CheckedRow(partition, event, created, sorted(nulls), stored)

    def check_all(self, rows: Sequence[RowToWrite]) -> list[CheckedRow]:
        """As `check` of each; a matrix is taken by its columns."""
        if isinstance(rows, MatrixRows):
            checked = self._check_columns(rows)
            if checked is not None:
                return checked
        return [self.check(row) for row in rows]

    def _check_columns(self, rows: MatrixRows) -> list[CheckedRow] | None:
        """None where a row is refused, which `check` tells by its key, or where a value is null."""
        vector = self._columns.get(rows.feature)
        if vector is None or vector.check is None or vector.dim != rows.vectors.shape[1]:
            return None
        if rows.others.keys() - self._columns.keys():
            return None
        if any(value.WhichOneof("val") in (None, "null_val") for column in rows.others.values() for value in column):
            return None
        stored: list[Sequence[Any]] = []
        for name, column in self._columns.items():
            if name == rows.feature:
                stored.append(_pieces(rows.vectors.astype(">f4").tobytes(), 4 * column.dim))
            elif name in rows.others:
                try:
                    stored.append([column.encode(value) for value in rows.others[name]])
                except (ValueRefused, struct.error):
                    return None
            else:
                stored.append([ABSENT] * len(rows))
        partitions = [self._text_key(rows.join_key, key) for key in rows.keys]
        if any(len(partition) > MAX_KEY_BYTES for partition in partitions):
            return None
        created_time = rows.created_time
        if created_time is None:
            created_time = np.full(len(rows), micros(datetime.now(UTC)))
        events, created = (_pieces(times.astype(">i8").tobytes(), 8) for times in (rows.event_time, created_time))
        return [
            CheckedRow(partition, event, creation, (), values)
            for partition, event, creation, values in zip(
                partitions, events, created, zip(*stored, strict=True), strict=True
            )
        ]

    def bind(self, row: CheckedRow) -> RawBound:
        """The statement that writes a row."""
        stored = [
            column.encode(value) if isinstance(value, Value) else value
            for column, value in zip(self._columns.values(), row.values, strict=True)
        ]
        version = [row.partition, row.event, row.created, self._digest(row.nulls, stored)]
        absent = list_of(row.nulls) if row.nulls else ABSENT
        return self._statement.bind_raw([row.event, *version, absent, *stored, self._ttl, *version], row.partition)

    def _digest(self, nulls: Sequence[bytes], stored: Sequence[Any]) -> bytes:
        """The last part of a row's version: how many features it has, then 48 bits of two sums of them.

        So what is materialized again after `feast apply` added a feature, at the same times, replaces what had it not.
        """
        parts = [len(nulls).to_bytes(4, "big"), *map(_sized, nulls)]
        written = len(nulls)
        for head, value in zip(self._heads, stored, strict=True):
            if value is not ABSENT:
                parts += (head, len(value).to_bytes(4, "big"), value)
                written += 1
        joined = b"".join(parts)
        other = 0
        for start in range(0, len(joined), SUMMED_AT_ONCE):
            other = zlib.crc32(joined[start : start + SUMMED_AT_ONCE], other)
        return (
            min(written, 0x7FFF).to_bytes(2, "big") + crc32c(joined).to_bytes(4, "big") + other.to_bytes(4, "big")[:2]
        )


def _pieces(joined: bytes, size: int) -> list[bytes]:
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def _sized(name: bytes) -> bytes:
    return len(name).to_bytes(4, "big") + name
