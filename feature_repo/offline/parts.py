"""The parts of a feature view's history: their names, how one is appended and which ones count.

A part is named after the days of its rows' event times, `20260101-20260103_<written at>_<random>.parquet`: flat, since
a folder `day=…` shows pyarrow, and so Feast, a column `day` that the view does not have. A push is one file however
many days it spans, so that it is seen whole or not at all; compaction sorts rows by day and cuts at days.
"""

import functools
import json
import re
import uuid
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView, FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource

from feature_repo.offline.columns import as_told, evolved, fitted, part_schema
from feature_repo.offline.folder import Folder

SCHEMA_PART = "0-schema.parquet"  # no rows: the columns of a view, also before anything was pushed; first by name
COMPACTED = ".compacted.parquet"
REPLACES = b"embark.replaces"  # in the footer of a compacted part: the names of the parts that it was made of
TIE = "embedding_id"  # where a history has it, it decides between rows of one event time and created time

NAME = re.compile(r"(\d{8})-(\d{8})_[^/]+\.parquet")


def folder_of(source: DataSource | None) -> Folder | None:
    """The folder of a source's parts; None where the source is a single file, a pattern, or not of parquet at all."""
    if not isinstance(source, FileSource) or not isinstance(source.file_format, ParquetFormat | None):
        return None
    if source.path.endswith(".parquet") or any(c in source.path for c in "*?["):
        return None
    credentials = source.resolve_credentials() if source.path.startswith("s3://") else None
    return Folder.at(source.path, s3_endpoint=source.s3_endpoint_override, credentials=credentials)


def ensure_schema(folder: Folder, schema: pa.Schema) -> pa.Schema:
    """Writes the part that tells the columns, where there is none or the view's have changed.

    Args:
        schema: the columns that the view declares.

    Returns:
        The columns of the history: those, each in its type so far where that cannot be cast to the declared one.
    """
    try:
        told = read_schema(folder)
    except FileNotFoundError:
        folder.write(SCHEMA_PART, schema.empty_table())
        return schema
    schema = evolved(told, schema)
    if not told.equals(schema):
        folder.write(SCHEMA_PART, schema.empty_table())
    return schema


def history_schema(folder: Folder, feature_view: FeatureView) -> pa.Schema:
    """The columns of a view's history, as it is read: typed as its files are, or as declared where they have none."""
    declared = part_schema(feature_view)
    try:
        return as_told(read_schema(folder), declared)
    except FileNotFoundError:
        return declared


def is_history(folder: Folder) -> bool:
    """Whether a folder is ours: it has the part that tells the columns, or nothing at all.

    What others filled, a saved dataset for one, is left to stock Feast.
    """
    # The first question costs the same however many parts there are: it is asked at each push.
    return folder.has(SCHEMA_PART) or (folder.is_flat() and not folder.names())


def read_schema(folder: Folder) -> pa.Schema:
    """The columns of a history.

    Raises:
        FileNotFoundError: it has no part that tells them.
    """
    return pq.read_schema(folder.file(SCHEMA_PART), filesystem=folder.filesystem).remove_metadata()


def append(folder: Folder, schema: pa.Schema, event: str, table: pa.Table) -> str:
    """Appends `table` as one part: durable when this returns.

    Args:
        schema: the columns that the part is to have.
        event: name of the column of the event time.

    Returns:
        The part's name.

    Raises:
        ValueError: the table has other columns, or a value that its column cannot hold.
        OSError: it cannot be written; nothing is left behind.
    """
    table = fitted(table, schema)
    name = part_name(table, event)
    folder.write(name, table)
    return name


def part_name(table: pa.Table, event: str, suffix: str = ".parquet") -> str:
    """A new name for a part: days of its rows, now, a random number."""
    ends = pc.min_max(table[event])
    first, last = (f"{t.as_py():%Y%m%d}" if t.is_valid else "00000000" for t in (ends["min"], ends["max"]))
    return f"{first}-{last}_{datetime.now(UTC):%Y%m%dT%H%M%S%f}_{uuid.uuid4().hex[:12]}{suffix}"


def within(name: str, earliest: date | None, latest: date | None) -> bool:
    """Whether a part may hold rows of those days (of UTC, both included), by its name."""
    match = NAME.fullmatch(name)
    if match is None:
        return True
    first, last = match.groups()
    return not (latest and first > f"{latest:%Y%m%d}") and not (earliest and last < f"{earliest:%Y%m%d}")


def current(folder: Folder, names: Iterable[str]) -> list[str]:
    """Those of `names` whose rows are in no compacted part among them: every row once."""
    names = list(names)
    replaced = {old for name in names if name.endswith(COMPACTED) for old in replaced_by(folder, name)}
    return [name for name in names if name not in replaced]


@functools.lru_cache(maxsize=65536)  # parts never change
def replaced_by(folder: Folder, name: str) -> tuple[str, ...]:
    """The names of the parts that a compacted one was made of.

    Raises:
        FileNotFoundError: it is gone.
    """
    metadata: Any = pq.read_schema(folder.file(name), filesystem=folder.filesystem).metadata or {}
    return tuple(json.loads(metadata.get(REPLACES, b"[]")))
