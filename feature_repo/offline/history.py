"""Reads a history in two steps: the keys and times of all rows, and later the values of the few rows that are wanted.

A row's position is its place in the parts in order of their names: it moves through joins in the place of a vector.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from feature_repo.offline.columns import TIME
from feature_repo.offline.folder import Folder
from feature_repo.offline.gather import take
from feature_repo.offline.parts import current, within

T = TypeVar("T")

ATTEMPTS = 3  # at a read of all: a part that went away while it was read was compacted
READERS = 4  # parts read at once: enough to hide the latency of an object store
FRAGMENT = "__fragment_index"  # pyarrow's name for the number of a row's file


def read_whole(read: Callable[[], T]) -> T:
    """What `read` answers; it is asked again where a part went away under it, whose rows are in a compacted one.

    Raises:
        FileNotFoundError: that happened three times.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


class History(Protocol):
    """Rows that can be found by their position."""

    def index(self, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        """The columns of all rows, by position; those of `times` in microseconds of UTC."""
        ...

    def values(self, positions: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The columns of the rows at `positions` (M,), which are ascending and distinct."""
        ...

    def where(self, column: str, value: str, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        """`columns` of the rows whose `column` is `value`, by position; those of `times` in microseconds of UTC."""
        ...


class PartsHistory:
    """The parts of a folder as they are now. Not safe for threads: `index` first, then `values`.

    Every method raises FileNotFoundError where a part is gone: a compaction's grace period was shorter than this read.

    Args:
        schema: columns and types to read; a part that lacks one has nulls in its place.
        earliest, latest: days of UTC; parts without rows in between are not read.
    """

    def __init__(
        self, folder: Folder, schema: pa.Schema, *, earliest: date | None = None, latest: date | None = None
    ) -> None:
        self._folder = folder
        self._names = [n for n in current(folder, folder.names()) if within(n, earliest, latest)]
        self._schema = schema
        self._format = ds.ParquetFileFormat()
        self._fragments = [self._format.make_fragment(folder.file(n), folder.filesystem) for n in self._names]
        self._starts = np.zeros(1, dtype=np.int64)  # (parts + 1,) position of each part's first row

    def index(self, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        names = list(dict.fromkeys([*columns, *times]))
        dataset = ds.FileSystemDataset(self._fragments, self._schema, self._format)
        with self._gone_is_not_found():
            table = dataset.scanner(columns=[*names, FRAGMENT]).to_table()
        counts = np.bincount(table[FRAGMENT].to_numpy(), minlength=len(self._fragments))
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return in_utc(table.select(names), times)

    def values(self, positions: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        bounds = np.searchsorted(positions, self._starts)  # (parts + 1,)
        wanted = [i for i in range(len(self._fragments)) if bounds[i] < bounds[i + 1]]

        def read(i: int) -> pa.Table:
            rows = positions[bounds[i] : bounds[i + 1]] - self._starts[i]
            return _rows_of(self._fragments[i], self._schema, rows, list(columns))

        with self._gone_is_not_found(), ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(read, wanted))
        empty = pa.schema([self._schema.field(c) for c in columns]).empty_table()
        return pa.concat_tables([empty, *found])

    def where(self, column: str, value: str, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        # Row groups whose least value is greater are not read.
        dataset = ds.FileSystemDataset(self._fragments, self._schema, self._format)
        with self._gone_is_not_found():
            table = dataset.scanner(columns=list(columns), filter=ds.field(column) == value).to_table()
        return in_utc(table, times)

    @contextmanager
    def _gone_is_not_found(self) -> Iterator[None]:
        """S3 answers some other error where an object goes between being opened and being read."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            gone = set(self._names).difference(self._folder.names())
            if not gone:
                raise
            raise FileNotFoundError(f"{self._folder.path}: {sorted(gone)} went away") from error


def _rows_of(
    fragment: ds.ParquetFileFragment, schema: pa.Schema, rows: NDArray[np.int64], columns: list[str]
) -> pa.Table:
    """The rows at `rows` (M,), ascending, of one part; row groups without any are not read.

    One group at a time: in memory that is used again, where that of a whole part would be new to the process.
    """
    found, start = [], 0
    for group in fragment.row_groups:
        end = start + group.num_rows
        first, last = np.searchsorted(rows, [start, end])
        if first < last:
            table = fragment.subset(row_group_ids=[group.id]).to_table(
                schema=schema, columns=columns, use_threads=False
            )
            found.append(take(table, rows[first:last] - start))
        start = end
    return pa.concat_tables(found)


@dataclass(frozen=True, slots=True)
class TableHistory:
    """Rows in memory: of a source that is no folder of parts."""

    table: pa.Table

    def index(self, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        return in_utc(self.table.select(list(dict.fromkeys([*columns, *times]))), times)

    def values(self, positions: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        return take(self.table.select(list(columns)), positions)

    def where(self, column: str, value: str, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        found = self.table.filter(pc.equal(self.table[column], value))
        return in_utc(found.select(list(columns)), times)


def in_utc(table: pa.Table, times: Sequence[str]) -> pa.Table:
    """`table` with its columns `times` in microseconds of UTC; times without a zone are UTC."""
    for name in times:
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(TIME, safe=False))
    return table
