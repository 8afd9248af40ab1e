"""Which row of a history stood at a moment: an as-of join on numbers, by sorting and binary search.

Of a key's rows, the one with the latest event time not after the moment; among rows of one event time the one created
last; among those the one with the greatest tie-breaker (an embedding's id), then the one in the last part. So a row
that is there twice, from a replay or while a compaction keeps old and new parts, shows once.

DuckDB's ASOF join knows one inequality: `as_served` needs two (event time and created time), and ties a rule. Both are
exact here, and as fast (`benchmarks/history_join.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEVER = np.iinfo(np.int64).min  # a time that is null
NOTHING = -1  # in the place of a row's position: no row stood


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows of a history.

    Attributes:
        key: (N,) int64, equal where the join keys are; -1 where one is null.
        event: (N,) int64 µs, NEVER where null.
        created: (N,) int64 µs, NEVER where null; None where the history has no such column.
        tie: (N,) int64, decides between rows of one key, event time and created time; None: their order does.
    """

    key: NDArray[np.int64]
    event: NDArray[np.int64]
    created: NDArray[np.int64] | None = None
    tie: NDArray[np.int64] | None = None


def rows_at(
    rows: Rows,
    key: NDArray[np.int64],
    moment: NDArray[np.int64],
    *,
    ttl: int | None = None,
    as_served: bool = False,
) -> NDArray[np.int64]:
    """The position in `rows` of what stood for each of M keys at its moment; NOTHING where nothing did.

    Args:
        rows: the history.
        key: (M,) numbers as in `rows.key`.
        moment: (M,) µs; NEVER finds nothing.
        ttl: µs; an event so long before the moment is still found, an older one is not.
        as_served: only rows that were created by the moment; rows without a created time are not found.

    Returns:
        (M,) int64.
    """
    known = (rows.key >= 0) & (rows.event != NEVER) & np.isin(rows.key, key)
    visible_from = rows.event
    if as_served and rows.created is not None:
        known &= rows.created != NEVER
        visible_from = np.maximum(rows.event, rows.created)
    at = np.flatnonzero(known)
    found = np.full(len(key), NOTHING, dtype=np.int64)
    if len(at) == 0:
        return found

    # 1. the rank of each row among all: which of two rows of one key stands, where both are visible
    by = [each[at] for each in (rows.tie, rows.created) if each is not None]
    order = np.lexsort((at, *by, rows.event[at]))
    rank = np.empty(len(at), dtype=np.int64)
    rank[order] = np.arange(len(at))

    # 2. one number a row, ascending by key, then by the time from which it is visible
    times, slot = np.unique(visible_from[at], return_inverse=True)
    width = len(times) + 1
    place = rows.key[at] * width + slot + 1
    sequence = np.argsort(place, kind="stable")
    place = place[sequence]

    # 3. the best row of the key up to each: keys ascend, so a new key outranks all rows of the one before
    best = np.maximum.accumulate(place // width * len(at) + rank[sequence]) % len(at)

    # 4. the last visible row of each key at its moment
    wanted = key * width + np.searchsorted(times, moment, side="right")
    last = np.searchsorted(place, wanted, side="right") - 1
    hit = (key >= 0) & (moment != NEVER) & (last >= 0)
    hit[hit] = place[last[hit]] // width == key[hit]
    found[hit] = at[order[best[last[hit]]]]

    # 5. the event that stands is the latest there is: where it is too old, all are
    if ttl is not None:
        expired = hit.copy()
        expired[hit] = moment[hit] - rows.event[found[hit]] > ttl
        found[expired] = NOTHING
    return found


def last_rows(rows: Rows) -> NDArray[np.int64]:
    """The positions of the last row of each key, ascending."""
    keys = np.unique(rows.key[rows.key >= 0])
    forever = np.full(len(keys), np.iinfo(np.int64).max)
    found = rows_at(rows, keys, forever)
    return np.sort(found[found != NOTHING])


def distinct_rows(rows: Rows) -> NDArray[np.int64]:
    """The positions, ascending, of one row for each key, event time, created time and tie-breaker: the first.

    Rows without a key, or of a history without a tie-breaker, are all distinct: what else they hold is not known.
    """
    if rows.tie is None or len(rows.key) == 0:
        return np.arange(len(rows.key))
    by = [each for each in (rows.tie, rows.created, rows.event, rows.key) if each is not None]
    order = np.lexsort(tuple(by))  # stable: of equal rows the first comes first
    same = np.ones(len(order) - 1, dtype=np.bool_)
    for each in by:
        same &= each[order[1:]] == each[order[:-1]]
    same &= rows.key[order[1:]] >= 0
    return np.sort(np.delete(order, np.flatnonzero(same) + 1))
