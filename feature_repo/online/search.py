"""Searching a feature view by vector, by keywords, and by filters.

A vector with an index of the metric that is asked for is found by that index, which is approximate; all else by reading
every row, which is exact. Either way distances are computed here, from the vectors that were read.
"""

import functools
import heapq
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from cassandra import ConsistencyLevel, ReadFailure
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from numpy.typing import NDArray

from feature_repo.online import answers
from feature_repo.online.answers import FIRST_FEATURE
from feature_repo.online.asked import Search, words_of
from feature_repo.online.cluster import READ
from feature_repo.online.columns import Column, matrix
from feature_repo.online.config import OnlineSettings
from feature_repo.online.filters import Getter, restrictions
from feature_repo.online.metrics import distances
from feature_repo.online.reads import Row
from feature_repo.online.statements import RawStatement, from_bigint
from feature_repo.online.table import quoted
from feature_repo.online.views import FIRST_EVENT

MOST_FROM_INDEX = 1000  # Cassandra refuses a larger LIMIT after ANN OF
WIDER = 4  # each time that too few rows of the index match, so many times more are asked for
SCAN_PAGE = 1000  # rows: 2 MB of 512 floats
INDEX_NOT_AVAILABLE = 6  # Cassandra's RequestFailureReason: it is still being built

logger = logging.getLogger(__name__)

Document = tuple[datetime | None, EntityKey, dict[str, Value]]


class ScanLimitReached(ValueError):
    """A search would have to read more rows than `vector_scan_limit`; the message says what to declare instead."""


@dataclass(frozen=True, slots=True)
class Found:
    """A row that a search found.

    Attributes:
        row: entity_key, event_time, nulls, then `Search.reads`.
        distance: from the query's vector; 0 where the query has none.
        rank: how much of the row's text is the query's words, 0 to 1; 0 where the query has none.
    """

    row: Row
    distance: float
    rank: float

    @property
    def order(self) -> tuple[Any, ...]:
        """Best first: the better text, then the nearer vector; the key only to order ties always alike."""
        return -self.rank, self.distance, self.row[0]


def find(search: Search, session: Any, prepare: Callable[[str], RawStatement], settings: OnlineSettings) -> list[Found]:
    """The best rows, at most `top_k`, best first.

    Args:
        prepare: CQL → a raw statement of that session.

    Raises:
        ScanLimitReached: no index can answer, and the view has too many rows to read them all.
        ValueError: a row whose vector has another length than the query; only where no `vector_length` is declared.
        cassandra.DriverException, NoHostAvailable: Cassandra did not answer.
    """
    reason = search.why_no_index(vector_enabled=settings.vector_enabled, most=MOST_FROM_INDEX)
    if reason is None:
        try:
            found = _by_index(search, session, prepare)
        except ReadFailure as error:
            if INDEX_NOT_AVAILABLE not in (error.error_code_map or {}).values():
                raise
            reason = "its index is still being built"
        else:
            if found is not None:
                return found
            reason = f"fewer than top_k of the index's nearest {MOST_FROM_INDEX} rows pass the filter or the ttl"
    _warn_of_scan(search.table.project, search.table.view, reason)
    return _by_scan(search, session, prepare, settings.vector_scan_limit, reason)


def documents(search: Search, found: Sequence[Found]) -> list[Document]:
    """What `OnlineStore.retrieve_online_documents_v2` answers: the features asked for, `distance` and `text_rank`."""
    keys = [each.row[0] for each in found]
    rows = {each.row[0]: each.row for each in found if each.row[0] is not None}
    answered = answers.feast_rows(search.table, search.features, keys, rows, FIRST_EVENT)
    told: list[Document] = []
    for each, (event_time, values) in zip(found, answered, strict=True):
        extra = {}
        if search.query is not None:
            extra["distance"] = Value(float_val=each.distance)
        if search.words:
            extra["text_rank"] = Value(float_val=each.rank)
        told.append((event_time, _entity_key(each.row), {**(values or {}), **extra}))
    return told


def _by_index(search: Search, session: Any, prepare: Callable[[str], RawStatement]) -> list[Found] | None:
    """The nearest rows by the index; None where it cannot tell, because too few of the rows it gives match."""
    table, vector = search.table, search.table.columns[search.vector]
    scalars = {each.feature for each in table.indexes if each.metric is None} - search.join_keys
    indexed = {feature: table.columns[feature] for feature in scalars}
    restricted = restrictions(search.filters, indexed, search.types)
    where = f" WHERE {' AND '.join(condition for condition, _ in restricted)}" if restricted else ""
    statement = prepare(f"{_select(search)}{where} ORDER BY {quoted(vector.name)} ANN OF ? LIMIT ?")
    values = [value for _, value in restricted]
    nearest = np.asarray(search.query).astype(">f4").tobytes()
    limit = min(MOST_FROM_INDEX, search.top_k * (1 if search.filters is None else WIDER))
    while True:
        bound = statement.bind_raw([*values, nearest, struct.pack(">i", limit)], None)
        bound.consistency_level = ConsistencyLevel.LOCAL_ONE  # the only one; else Cassandra says so each time
        rows = session.execute(bound, execution_profile=READ).current_rows
        found = _best(search, [], rows)
        if len(found) == search.top_k or len(rows) < limit:
            return found
        if limit == MOST_FROM_INDEX:
            return None
        limit = min(MOST_FROM_INDEX, limit * WIDER)


def _by_scan(
    search: Search, session: Any, prepare: Callable[[str], RawStatement], limit: int, reason: str
) -> list[Found]:
    bound = prepare(f"{_select(search)} PER PARTITION LIMIT 1").bind_raw([], None)
    bound.fetch_size = SCAN_PAGE
    best: list[Found] = []
    read = 0
    for rows in _pages(session, bound):
        read += len(rows)
        if read > limit:
            raise ScanLimitReached(
                f"{search.table.view}: this search reads every row, since {reason}, and stopped at"
                f" vector_scan_limit={limit}: declare vector_length, vector_index=True and"
                " vector_search_metric of the vector and run `feast apply`, ask for that metric, and filter by what an"
                " index can compare; or raise vector_scan_limit"
            )
        best = _best(search, best, rows)
    return best


def _pages(session: Any, bound: Any) -> Iterator[Sequence[Row]]:
    result = session.execute(bound, execution_profile=READ)
    yield result.current_rows
    while result.has_more_pages:
        result.fetch_next_page()
        yield result.current_rows


def _select(search: Search) -> str:
    columns = [quoted(search.table.columns[feature].name) for feature in search.reads]
    return f"SELECT {', '.join(['entity_key', 'event_time', 'nulls', *columns])} FROM {search.table.cql}"  # noqa: S608


def _best(search: Search, best: list[Found], rows: Sequence[Row]) -> list[Found]:
    """The best of those found so far and of these rows, at most `top_k`, in order."""
    rows = [row for row in rows if from_bigint(row[1] or b"") >= search.oldest and row[0] != search.hidden]
    far = distances_of(search, rows)
    new: list[Found] = []
    for at in np.argsort(far, kind="stable"):  # NaN last
        # Filters are evaluated only where a row is near enough to be among the best, which the text may make any row.
        if np.isnan(far[at]) or not (search.words or _is_among(far[at], best, new, search.top_k)):
            break
        get = _getter(search, rows[at])
        if search.matches(get):
            rank = _rank(search, get)
            if rank or not search.words:
                new.append(Found(rows[at], float(far[at]), rank))
    return heapq.nsmallest(search.top_k, [*best, *new], key=lambda each: each.order)


def _is_among(distance: float, best: list[Found], new: list[Found], top_k: int) -> bool:
    return all(len(found) < top_k or distance <= found[top_k - 1].distance for found in (best, new))


def distances_of(search: Search, rows: Sequence[Row]) -> NDArray[np.float64]:
    """Distance of each row from the query, (N,): NaN where it has none; 0 where the query has no vector."""
    far = np.zeros(len(rows))
    if search.query is None:
        return far
    at = FIRST_FEATURE + search.reads.index(search.vector)
    there = [i for i, row in enumerate(rows) if row[at] is not None]
    far[:] = np.nan
    if there:
        vectors = _vectors(search, [rows[i] for i in there], at)  # (N, dim)
        far[there] = distances(search.metric, vectors, search.query)
    return far


def _vectors(search: Search, rows: Sequence[Row], at: int) -> NDArray[np.float64]:
    column, dim = search.table.columns[search.vector], len(np.asarray(search.query))
    if column.dim:
        return matrix([row[at] or b"" for row in rows], dim).astype(np.float64)
    vectors = np.empty((len(rows), dim))
    for i, row in enumerate(rows):
        floats = _python(column, row[at])
        if len(floats) != dim:
            key = _entity_key(row)
            raise ValueError(
                f"{search.table.view}: the query has {dim} floats and feature {search.vector!r} of"
                f" {dict(zip(key.join_keys, map(_scalar, key.entity_values), strict=True))} has {len(floats)};"
                " a declared vector_length would allow one length only"
            )
        vectors[i] = floats
    return vectors


def _rank(search: Search, get: Getter) -> float:
    if not search.words:
        return 0.0
    text = [word for feature in search.texts for word in words_of(get(feature) or "")]
    if not search.words.issubset(text):
        return 0.0
    return sum(word in search.words for word in text) / len(text)


def _getter(search: Search, row: Row) -> Getter:
    """The values of one row, decoded when they are asked for."""

    def get(key: str) -> Any:
        if key not in search.join_keys:
            return _python(search.table.columns[key], row[FIRST_FEATURE + search.reads.index(key)])
        entity = _entity_key(row)
        return _scalar(entity.entity_values[list(entity.join_keys).index(key)])

    return get


def _python(column: Column, stored: bytes | None) -> Any:
    return None if stored is None else _scalar(column.decode(stored))


def _scalar(value: Value) -> Any:
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    found = getattr(value, kind)
    return found.val if kind.endswith("_list_val") else found


def _entity_key(row: Row) -> EntityKey:
    key: EntityKey = deserialize_entity_key(row[0], entity_key_serialization_version=3)
    return key


@functools.lru_cache(maxsize=1024)  # so that it is said once
def _warn_of_scan(project: str, view: str, reason: str) -> None:
    logger.warning("Searches of %s in project %s read every row: %s.", view, project, reason)
