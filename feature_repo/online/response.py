"""Feast's answer to `get_online_features`, put together from bytes.

Feast's own way makes a protobuf object of each value, each timestamp and each row, and copies them into the response
one by one, which takes longer than reading them. Serialized, a feature of N rows is a sequence of length-prefixed
values: here that sequence is built, and parsed once, in C.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feast.metrics import track_feature_statuses
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo.online.answers import FIRST_FEATURE
from feature_repo.online.columns import Column, Vectors
from feature_repo.online.reads import Row
from feature_repo.online.statements import from_bigint, items_of
from feature_repo.online.views import OnlineView

_FIELDS = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name
LENGTH_DELIMITED = 2  # protobuf's wire type of a message
_VALUE, _STATUSES, _TIME = (
    bytes([_FIELDS[name].number << 3 | LENGTH_DELIMITED]) for name in ("values", "statuses", "event_timestamps")
)
PRESENT, NOT_FOUND = int(FieldStatus.PRESENT), int(FieldStatus.NOT_FOUND)
NULL = b""  # a serialized Value that holds nothing


@dataclass(frozen=True, slots=True)
class AskedView:
    """One view's part of a request.

    Attributes:
        view: the feature view, with the projection under which it was asked for.
        online: the same as the store sees it.
        features: what was asked for; one that the table has not is NOT_FOUND everywhere.
        keys: the distinct keys; None for one that no row can have.
        positions: for each of `keys` the rows of the response that ask for it.
        count: rows of the response.
        oldest: event time in µs before which a row counts as missing.
    """

    view: Any
    online: OnlineView
    features: Sequence[str]
    keys: Sequence[bytes | None]
    positions: Sequence[Sequence[int]]
    count: int
    oldest: int

    @property
    def known(self) -> list[str]:
        """The features to read, in the order of a row's columns."""
        return [feature for feature in self.features if feature in self.online.table.columns]

    def answer(
        self,
        response: GetOnlineFeaturesResponse,
        found: Mapping[bytes, Row],
        full_feature_names: bool,
        with_version: bool,
    ) -> None:
        """Appends these features to a response, as Feast's `_populate_response_from_feature_data` does."""
        projected = self.view.projection.name_to_use()
        names = [f"{projected}__{feature}" if full_feature_names else feature for feature in self.features]
        response.metadata.feature_names.val.extend(names)
        if with_version:
            _add_version(response, self.view)
        rows = self._rows(found)
        times = b"".join(_event_times(rows))
        known = self.known
        present = 0
        for feature in self.features:
            if feature in known:
                column = self.online.table.columns[feature]
                values = _serialized(column, known.index(feature) + FIRST_FEATURE, rows)
            else:
                values = [None] * self.count
            statuses = bytes([NOT_FOUND if value is None else PRESENT for value in values])
            present += self.count - statuses.count(NOT_FOUND)
            parts = [part for value in values for part in (_VALUE, _varint(len(value or NULL)), value or NULL)]
            added = response.results.add()
            if self.count:
                added.MergeFromString(b"".join((*parts, _STATUSES, _varint(self.count), statuses, times)))
        track_feature_statuses(self.view.name, present, len(self.features) * self.count - present)

    def _rows(self, found: Mapping[bytes, Row]) -> list[Row | None]:
        rows: list[Row | None] = [None] * self.count
        for key, positions in zip(self.keys, self.positions, strict=True):
            row = None if key is None else found.get(key)
            if row is not None and from_bigint(row[1] or b"") >= self.oldest:
                for position in positions:
                    rows[position] = row
        return rows


def _serialized(column: Column, at: int, rows: Sequence[Row | None]) -> list[bytes | None]:
    """The value of each row as serialized protobuf; None where it was never written."""
    values: list[bytes | None] = [None] * len(rows)
    there = [i for i, row in enumerate(rows) if row is not None and row[at] is not None]
    stored: list[bytes] = [rows[i][at] for i in there]  # type: ignore[index, misc]
    if column.dim:
        serialized = Vectors(column.dim).decode_all(stored)
    else:
        serialized = [column.decode(each).SerializeToString() for each in stored]
    for i, value in zip(there, serialized, strict=True):
        values[i] = value
    if len(there) < len(rows):
        name = column.feature.encode()
        for i, row in enumerate(rows):
            if values[i] is None and row is not None and row[2] is not None and name in items_of(row[2]):
                values[i] = NULL
    return values


def _event_times(rows: Sequence[Row | None]) -> list[bytes]:
    known: dict[bytes | None, bytes] = {None: _TIME + b"\0"}
    times = []
    for row in rows:
        stored = None if row is None else row[1]
        if stored not in known:
            seconds, micros = divmod(from_bigint(stored or b""), 1_000_000)
            serialized = Timestamp(seconds=seconds, nanos=micros * 1000).SerializeToString()
            known[stored] = _TIME + _varint(len(serialized)) + serialized
        times.append(known[stored])
    return times


def _add_version(response: GetOnlineFeaturesResponse, view: Any) -> None:
    name = view.projection.name_alias or view.projection.name
    described: Mapping[str, Any] = {each.name: each for each in response.metadata.feature_view_metadata}
    if name not in described:
        added = response.metadata.feature_view_metadata.add()
        added.name = name
        added.version = getattr(view, "current_version_number", 0) or 0


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SMALL[number]
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_SMALL = [bytes([i]) for i in range(0x80)]
