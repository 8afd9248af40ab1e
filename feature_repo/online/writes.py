"""Writing rows: one statement each, bounded in flight, and which keys failed where some did."""

import asyncio
import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.online.cluster import WRITE
from feature_repo.online.columns import Column, ValueRefused
from feature_repo.online.reads import awaitable
from feature_repo.online.statements import ABSENT, RawBound, RawStatement, bigint, list_of
from feature_repo.online.views import MAX_KEY_BYTES
from feature_repo.session import StoreUnavailable

NAMED = 3  # failed keys in a message; the rest is counted

RowToWrite = tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]


class WriteFailed(StoreUnavailable):
    """Some rows of a batch were not acknowledged: each may or may not have been written, the others were.

    Writing the whole batch again is safe.

    Attributes:
        failures: position in the batch → the driver's error.
        keys: the keys of those rows, join key → value, in order of position.
    """

    def __init__(self, view: str, rows: Sequence[RowToWrite], failures: Mapping[int, BaseException]) -> None:
        self.failures = dict(sorted(failures.items()))
        self.keys = [key_values(rows[i][0]) for i in self.failures]
        named = "; ".join(f"{described(rows[i][0])}: {error!r}" for i, error in list(self.failures.items())[:NAMED])
        more = f" and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
        super().__init__(f"{view}: {len(failures)} of {len(rows)} rows were not written: {named}{more}")


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Rows of one view as bound statements.

    Attributes:
        view: its name, for messages.
        columns: feature → column, in the order of the statement.
        statement: `OnlineTable.insert` of those features, prepared.
        entity_key: serializes a key.
    """

    view: str
    columns: Mapping[str, Column]
    statement: RawStatement
    entity_key: Callable[[EntityKey], bytes]

    def encode(self, row: RowToWrite) -> RawBound:
        """Raises ValueRefused, naming view and key, for a row that the table cannot hold."""
        key, values, event_time, created_time = row
        unknown = values.keys() - self.columns.keys()
        if unknown:
            raise ValueRefused(
                f"{self.view}: {described(key)} has features that the view has not: {', '.join(sorted(unknown))}"
            )
        nulls = []
        stored: list[Any] = []
        for name, column in self.columns.items():
            value = values.get(name)
            if value is None:
                stored.append(ABSENT)
            elif value.WhichOneof("val") in (None, "null_val"):
                nulls.append(name.encode())
                stored.append(ABSENT)
            else:
                try:
                    stored.append(column.encode(value))
                except (ValueRefused, struct.error) as error:
                    raise ValueRefused(f"{self.view}: {described(key)}: feature {name!r} is {error}") from error
        partition = self.entity_key(key)
        if len(partition) > MAX_KEY_BYTES:
            raise ValueRefused(
                f"{self.view}: the key {described(key)} takes {len(partition)} bytes; Cassandra's hold {MAX_KEY_BYTES}"
            )
        absent = list_of(sorted(nulls)) if nulls else ABSENT
        event = stamp(event_time)
        # Without a created time the one written last counts: what is corrected replaces what it corrects.
        created = bigint(time.time_ns() // 1000 if created_time is None else micros(created_time))
        version = [partition, event, created, _digest(self.columns.values(), nulls, stored)]
        return self.statement.bind_raw([event, *version, absent, *stored, *version], partition)


def write(
    session: Any, statements: Sequence[RawBound], concurrency: int, progress: Callable[[int], Any] | None
) -> dict[int, BaseException]:
    """Writes all, `concurrency` at a time; answers which failed and why. `progress` hears of each, in this thread."""
    places = threading.Semaphore(concurrency)
    failures: dict[int, BaseException] = {}

    def failed(error: BaseException, position: int) -> None:
        failures[position] = error
        places.release()

    for position, statement in enumerate(statements):
        places.acquire()
        if progress is not None and position >= concurrency:
            progress(1)
        try:
            response = session.execute_async(statement, execution_profile=WRITE)
        except Exception as error:  # noqa: BLE001 - the driver's, of a statement that never left
            failed(error, position)
            continue
        response.add_callbacks(callback=lambda _: places.release(), errback=failed, errback_args=(position,))
    for i in range(concurrency):
        places.acquire()
        if progress is not None and i < len(statements):
            progress(1)
    return failures


async def write_async(
    session: Any, statements: Sequence[RawBound], concurrency: int, progress: Callable[[int], Any] | None
) -> dict[int, BaseException]:
    """As `write`, without blocking the event loop."""
    places = asyncio.Semaphore(concurrency)
    failures: dict[int, BaseException] = {}

    async def one(position: int, statement: RawBound) -> None:
        async with places:
            try:
                await awaitable(session.execute_async(statement, execution_profile=WRITE))
            except Exception as error:  # noqa: BLE001 - the driver's, told with the others
                failures[position] = error
        if progress is not None:
            progress(1)

    await asyncio.gather(*(one(i, statement) for i, statement in enumerate(statements)))
    return failures


def stamp(moment: datetime) -> bytes:
    """An event time as Cassandra's bytes of a write timestamp."""
    return bigint(micros(moment))


def micros(moment: datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC, as everywhere in Feast."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


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


def _digest(columns: Iterable[Column], nulls: Sequence[bytes], stored: Sequence[Any]) -> bytes:
    """The last part of a row's version: how many features it has, then a hash of them.

    So what is materialized again after `feast apply` added a feature, at the same times, replaces what had it not.
    """
    digest = hashlib.blake2b(len(nulls).to_bytes(4, "big"), digest_size=6)
    written = len(nulls)
    for name in sorted(nulls):
        digest.update(len(name).to_bytes(4, "big") + name)
    for column, value in zip(columns, stored, strict=True):
        if value is not ABSENT:
            name = column.name.encode()
            digest.update(len(name).to_bytes(4, "big") + name + len(value).to_bytes(4, "big"))
            digest.update(value)
            written += 1
    return min(written, 0x7FFF).to_bytes(2, "big") + digest.digest()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
