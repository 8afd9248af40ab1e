"""Entity rows of a Feast call, with the keys that each view is to be read with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.views import JOIN_KEYS

# Looked up in place of a key that can be none, which may be too long for Cassandra or no Unicode, and would cost all
# others their answer. No canonical key holds a NUL: it is found nowhere.
REFUSED = "\0refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a call asks of one view."""

    spec: EncoderSpec | None  # None: not an encoder's view
    columns: tuple[str, ...]  # of the entity rows: the join keys, or what a projection maps them to
    names: dict[str, str]  # feature → its name in the response


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One read, for the views that are to be read with the same keys."""

    columns: dict[str, list[Any]] = field(default_factory=dict)  # keys that are refused are REFUSED
    views: list[Asked] = field(default_factory=list)


def readings(asked: Sequence[Asked], rows: Mapping[str, list[Any]]) -> list[Reading]:
    """The fewest reads that give each view its keys: canonical ones to an encoder's view, to any other those given.

    More than one where two views of a column drop other URL parameters, or a view that is no encoder's shares the
    column and a key was not canonical. Encoders come first.
    """
    found: list[Reading] = []
    for each in sorted(asked, key=lambda view: view.spec is None):
        columns = {
            column: [canonical(each.spec, key) for key in rows[column]] if each.spec else rows[column]
            for column in each.columns
            if column in rows  # Feast says what is missing
        }
        for reading in found:
            if all(reading.columns.get(column, keys) == keys for column, keys in columns.items()):
                break
        else:
            reading = Reading()
            found.append(reading)
        reading.columns.update(columns)
        reading.views.append(each)
    return found


def as_columns(
    entity_rows: list[dict[str, Any]] | Mapping[str, Sequence[Any] | RepeatedValue],
) -> dict[str, list[Any]]:
    """Entity rows, in either of Feast's forms, as columns of plain values under their join keys.

    Raises:
        ValueError: the rows have different columns.
    """
    if isinstance(entity_rows, Mapping):
        columns = {
            name: [plain(v) for v in (column.val if isinstance(column, RepeatedValue) else column)]
            for name, column in entity_rows.items()
        }
    else:
        if any(row.keys() != entity_rows[0].keys() for row in entity_rows):
            raise ValueError("All entity_rows must have the same keys.")  # as Feast says it
        columns = {name: [plain(row[name]) for row in entity_rows] for name in entity_rows[0]}
    for entity, join_key in JOIN_KEYS.items():  # Feast still takes the name of an entity for its join key
        if entity in columns and join_key not in columns:
            columns[join_key] = columns.pop(entity)
    return columns


def plain(value: Any) -> Any:
    """The value in a protobuf `Value`; any other as it is."""
    if isinstance(value, Value):
        kind = value.WhichOneof("val")
        return getattr(value, kind) if kind else None
    return value


def canonical(spec: EncoderSpec, key: Any) -> Any:
    """The canonical key, or REFUSED; what is no text is left to Feast, which says so."""
    if not isinstance(key, str):
        return key
    try:
        return canonical_key(spec, key)
    except KeyRefused:
        return REFUSED
