"""Reading rows by key: keys once each, grouped by replica, in chunks that are in flight together."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from feature_repo.online.cluster import READ
from feature_repo.online.statements import RawBound, RawStatement, list_of

Row = tuple[bytes | None, ...]  # entity_key, event_time, nulls, then the features asked for


def chunks(statement: RawStatement, metadata: Any, keyspace: str, keys: Iterable[bytes], size: int) -> list[RawBound]:
    """Bound statements that read `keys`, `size` to each, those of a statement on the same replicas.

    Args:
        statement: `OnlineTable.select`, prepared.
        metadata: the driver's metadata of the cluster, for the token map.
    """
    bound = []
    for group in _by_replicas(metadata, keyspace, list(dict.fromkeys(keys))):
        for start in range(0, len(group), size):
            chunk = group[start : start + size]
            bound.append(statement.bind_raw([list_of(chunk)], chunk[0]))
    return bound


def read(session: Any, reads: Sequence[Sequence[RawBound]], concurrency: int) -> list[dict[bytes, Row]]:
    """For each of several reads the rows that are there, by entity key; `concurrency` statements at a time.

    Raises:
        cassandra.DriverException, NoHostAvailable: of the first statement that failed: nothing is known of its keys.
    """
    rows: list[dict[bytes, Row]] = [{} for _ in reads]
    waiting: deque[tuple[dict[bytes, Row], Any]] = deque()
    for into, statement in _all(rows, reads):
        if len(waiting) == concurrency:
            first, response = waiting.popleft()
            _collect(first, response.result().current_rows)
        waiting.append((into, session.execute_async(statement, execution_profile=READ)))
    for into, response in waiting:
        _collect(into, response.result().current_rows)
    return rows


async def read_async(session: Any, reads: Sequence[Sequence[RawBound]], concurrency: int) -> list[dict[bytes, Row]]:
    """As `read`, without blocking the event loop."""
    rows: list[dict[bytes, Row]] = [{} for _ in reads]
    waiting: deque[tuple[dict[bytes, Row], asyncio.Future[Any]]] = deque()
    try:
        for into, statement in _all(rows, reads):
            if len(waiting) == concurrency:
                first, answered = waiting[0]
                _collect(first, await answered)
                waiting.popleft()
            waiting.append((into, awaitable(session.execute_async(statement, execution_profile=READ))))
        for into, answered in waiting:
            _collect(into, await answered)
    finally:
        for _, answered in waiting:
            if not answered.cancel() and not answered.cancelled():
                answered.exception()  # heard, though another is raised: asyncio would complain of it in the log
    return rows


def _all(
    rows: Sequence[dict[bytes, Row]], reads: Sequence[Sequence[RawBound]]
) -> Iterator[tuple[dict[bytes, Row], RawBound]]:
    for into, statements in zip(rows, reads, strict=True):
        for statement in statements:
            yield into, statement


def awaitable(response: Any) -> asyncio.Future[Any]:
    """The driver's future as one of the running event loop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(set_outcome: Any, outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def hand_over(set_outcome: Any, outcome: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, set_outcome, outcome)

    response.add_callbacks(
        callback=lambda rows: hand_over(future.set_result, rows),
        errback=lambda error: hand_over(future.set_exception, error),
    )
    return future


def _collect(rows: dict[bytes, Row], answered: Iterable[Row]) -> None:
    for row in answered:
        rows[row[0]] = row  # type: ignore[index]


def _by_replicas(metadata: Any, keyspace: str, keys: list[bytes]) -> Iterator[list[bytes]]:
    """The keys, those together whose rows lie on the same nodes: any other node would only pass the question on."""
    if len(metadata.all_hosts()) == 1 or len(keys) == 1:
        if keys:
            yield keys
        return
    groups: dict[frozenset[Any], list[bytes]] = {}
    for key in keys:
        replicas = metadata.get_replicas(keyspace, key)
        groups.setdefault(frozenset(host.host_id for host in replicas), []).append(key)
    yield from groups.values()
