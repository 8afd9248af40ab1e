"""What Feast gives to write: rows, their keys in words, their times in microseconds."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.online.columns import ValueRefused
from feature_repo.online.statements import bigint

RowToWrite = tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]


def stamp(moment: datetime) -> bytes:
    """A time as Cassandra's bytes of a bigint, or of a write timestamp.

    Raises:
        ValueRefused: in UTC it is not within the years 1 to 9999, and could not be told when it is read.
    """
    time = micros(moment)
    if not FIRST_TIME <= time <= LAST_TIME:
        raise ValueRefused(f"{moment.isoformat()} is not within the years 1 to 9999 of UTC")
    return bigint(time)


def micros(moment: datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC, as everywhere in Feast."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def is_nat(moment: datetime) -> bool:
    return moment != moment  # pandas' "not a time" alone


def from_micros(moment: int) -> datetime:
    """The time with its zone, UTC."""
    return datetime.fromtimestamp(moment // 1_000_000, UTC).replace(microsecond=moment % 1_000_000)


def key_values(key: EntityKey) -> dict[str, Any]:
    """Join key → value."""
    return {
        name: getattr(value, value.WhichOneof("val") or "string_val")
        for name, value in zip(key.join_keys, key.entity_values, strict=True)
    }


def described(key: EntityKey) -> str:
    """A key for a message, shortened."""
    return ", ".join(f"{name}={_shortened(value)}" for name, value in key_values(key).items()) or "the only key"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
FIRST_TIME, LAST_TIME = micros(datetime.min), micros(datetime.max)  # µs
