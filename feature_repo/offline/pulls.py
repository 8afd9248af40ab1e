"""What Feast materializes and saves: the last row of each key, or all rows, of a span of event times."""

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from feast import RepoConfig
from feast.data_source import DataSource
from numpy.typing import NDArray

from feature_repo.offline.columns import Columns
from feature_repo.offline.deletions import not_deleted
from feature_repo.offline.gather import key_codes
from feature_repo.offline.history import PartsHistory
from feature_repo.offline.parts import TIE, folder_of, read_schema
from feature_repo.offline.point_in_time import Rows, distinct_rows, last_rows
from feature_repo.offline.retrieval import HistoricalJob, rows_of


def pull_latest(
    config: RepoConfig,
    source: DataSource,
    join_keys: list[str],
    features: list[str],
    event: str,
    created: str | None,
    start: datetime,
    end: datetime,
) -> HistoricalJob:
    """As `OfflineStore.pull_latest_from_table_or_query`, of a folder of parts."""
    return _pull(config, source, join_keys, features, event, created, start, end, last_rows)


def pull_all(
    config: RepoConfig,
    source: DataSource,
    join_keys: list[str],
    features: list[str],
    event: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
) -> HistoricalJob:
    """As `OfflineStore.pull_all_from_table_or_query`, of a folder of parts."""
    return _pull(config, source, join_keys, features, event, created, start, end, distinct_rows)


def _pull(
    config: RepoConfig,
    source: DataSource,
    join_keys: list[str],
    features: list[str],
    event: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
    choose: Callable[[Rows], NDArray[np.int64]],
) -> HistoricalJob:
    columns = Columns({}, event, created or "")
    times = [stamp for stamp in (event, created) if stamp]

    def read() -> pa.Table:
        folder = folder_of(source)
        assert folder is not None  # noqa: S101 - the store asks for nothing else
        try:
            schema = read_schema(folder)
        except FileNotFoundError:
            return pa.table({name: pa.nulls(0) for name in [*join_keys, *features, *times]})
        first, last = _utc(start), _utc(end)
        history = PartsHistory(
            folder, schema, earliest=first.date() if first else None, latest=last.date() if last else None
        )
        tie = TIE if TIE in schema.names and pa.types.is_int64(schema.field(TIE).type) else None
        index = history.index([*join_keys, *([tie] if tie else [])], times)
        keys = index.select(join_keys)
        _, key = key_codes(keys.slice(0, 0), keys)
        rows = rows_of(index, key, columns, tie)
        within = np.ones(len(key), dtype=np.bool_)
        if first:
            within &= rows.event >= _micros(first)
        if last:
            within &= rows.event <= _micros(last)
        at = np.flatnonzero(within)
        chosen = choose(
            Rows(
                rows.key[at],
                rows.event[at],
                None if rows.created is None else rows.created[at],
                None if rows.tie is None else rows.tie[at],
            )
        )
        wanted = at[chosen]
        if tie and choose is last_rows:
            wanted = not_deleted(schema, index[tie], wanted)
        return history.values(wanted, list(dict.fromkeys([*join_keys, *features, *times])))

    return HistoricalJob(read, config)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


def _micros(moment: datetime) -> int:
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
