"""The keys of an encoder's history and their newest events, in a file: what to embed anew, or with another encoder.

DuckDB groups the rows as they stream in, and spills to the disk what does not fit into its memory. No vector is read.
"""

import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from feast import FeatureStore

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY
from feature_repo.offline.columns import TIME, Columns
from feature_repo.offline.parts import TIE, current, folder_of, history_schema

KEY, EVENT = "key", "event_time"  # columns of the file: string, timestamp in UTC
MEMORY = "512MB"
ATTEMPTS = 3  # a part that went away while it was read was compacted: its rows are in another one

# One number tells the newest event of a key, and whether it is an embedding or a deletion: event time, created time,
# and whether the row has an id. Both times are microseconds below 2^58, until the year 11000.
NEWEST = f"""
    SELECT {KEY}, make_timestamp((newest // {1 << 59})::BIGINT) AS {EVENT} FROM (
        SELECT {KEY}, max(event::HUGEINT * {1 << 59} + greatest(created, 0) * 2 + embedded::INT) AS newest
        FROM history WHERE {KEY} IS NOT NULL AND event >= 0 GROUP BY {KEY}
    ) WHERE newest % 2 = 1
"""  # noqa: S608


class HistoryUnreadable(Exception):
    """The keys of a view cannot be read from its history; the message says why."""


def write_newest(store: FeatureStore, spec: EncoderSpec, path: Path) -> None:
    """Writes the keys that history holds and that were not removed since, each with its newest event time, as parquet.

    The file is there whole or not at all.

    Raises:
        HistoryUnreadable: history is not kept in parts, or cannot be read; or the file cannot be written.
    """
    view = store.get_feature_view(spec.view)
    folder = folder_of(view.batch_source)
    if folder is None:
        raise HistoryUnreadable(f"the history of {spec.view!r} is not kept in parts: its keys cannot be read there")
    columns = Columns.of(view.batch_source)
    schema = history_schema(folder, view)
    read = {
        KEY: ds.field(columns.named(spec.join_key)),
        "event": ds.field(columns.event).cast(TIME).cast(pa.int64()),
        "created": ds.field(columns.created).cast(TIME).cast(pa.int64()),
        "embedded": ds.field(TIE).is_valid(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    for attempt in range(ATTEMPTS):
        names = current(folder, folder.names())
        fragments = [ds.ParquetFileFormat().make_fragment(folder.file(n), folder.filesystem) for n in names]
        dataset = ds.FileSystemDataset(fragments, schema, ds.ParquetFileFormat())
        with tempfile.TemporaryDirectory(dir=path.parent) as spilled, duckdb.connect() as connection:
            connection.execute(f"SET memory_limit = '{MEMORY}'")
            connection.execute(f"SET temp_directory = {_literal(spilled)}")
            connection.register("history", dataset.scanner(columns=read, filter=read[KEY] != OOV_KEY).to_reader())
            try:
                connection.execute(f"COPY ({NEWEST}) TO {_literal(str(beside))} (FORMAT parquet, COMPRESSION zstd)")
                break
            except (duckdb.Error, FileNotFoundError) as error:
                gone = set(names).difference(folder.names())
                if not gone or attempt == ATTEMPTS - 1:
                    raise HistoryUnreadable(f"the keys of {spec.view} cannot be read from history: {error}") from error
    beside.replace(path)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
