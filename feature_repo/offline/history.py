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
from feature_repo.offline.gather import matrix, take
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

    def vectors(self, positions: NDArray[np.int64], column: str, into: NDArray[np.float32]) -> None:
        """Copies the vectors of the rows at `positions` (M,), ascending and distinct, to `into` (M, dim).

        Raises:
            ValueError: one of them has another length.
        """
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
        names = list(columns)

        def read(part: int, some: slice) -> list[pa.Table]:
            return [take(table, rows) for table, rows, _ in self._groups(part, positions, some, names)]

        empty = pa.schema([self._schema.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *(table for found in self._each_part(positions, read) for table in found)])

    def vectors(self, positions: NDArray[np.int64], column: str, into: NDArray[np.float32]) -> None:
        def read(part: int, some: slice) -> None:
            for table, rows, place in self._groups(part, positions, some, [column]):
                _copy(table[column], rows, into[place], self._folder.path)

        self._each_part(positions, read)

    def _each_part(self, positions: NDArray[np.int64], read: Callable[[int, slice], T]) -> list[T]:
        """What `read` answers for each part that has some of the positions, and which these are; several at once."""
        bounds = np.searchsorted(positions, self._starts).tolist()  # (parts + 1,)
        some = [(i, slice(*bounds[i : i + 2])) for i in range(len(self._fragments)) if bounds[i] < bounds[i + 1]]
        with self._gone_is_not_found(), ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(lambda each: read(*each), some))

    def _groups(
        self, part: int, positions: NDArray[np.int64], some: slice, columns: list[str]
    ) -> Iterator[tuple[pa.Table, NDArray[np.int64], slice]]:
        """The row groups of a part that hold some of its positions, which rows of the group, and where among all.

        One group at a time: in memory that is used again, where that of a whole part would be new to the process.
        """
        rows = positions[some] - self._starts[part]
        start = 0
        for group in self._fragments[part].row_groups:
            first, last = np.searchsorted(rows, [start, start + group.num_rows]).tolist()
            if first < last:
                fragment = self._fragments[part].subset(row_group_ids=[group.id])
                table = fragment.to_table(schema=self._schema, columns=columns, use_threads=False)
                yield table, rows[first:last] - start, slice(some.start + first, some.start + last)
            start += group.num_rows

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


@dataclass(frozen=True, slots=True)
class TableHistory:
    """Rows in memory: of a source that is no folder of parts."""

    table: pa.Table

    def index(self, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        return in_utc(self.table.select(list(dict.fromkeys([*columns, *times]))), times)

    def values(self, positions: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        return take(self.table.select(list(columns)), positions)

    def vectors(self, positions: NDArray[np.int64], column: str, into: NDArray[np.float32]) -> None:
        if len(positions):
            _copy(self.table[column], positions, into, "history")

    def where(self, column: str, value: str, columns: Sequence[str], times: Sequence[str]) -> pa.Table:
        found = self.table.filter(pc.equal(self.table[column], value))
        return in_utc(found.select(list(columns)), times)


def _copy(column: pa.ChunkedArray, rows: NDArray[np.int64], into: NDArray[np.float32], of: str) -> None:
    """The vectors of `column` at `rows` (M,) to `into` (M, dim). `of` is what an error calls the history."""
    found = matrix(column)
    if found is None:  # others of its rows are null: of keys that were removed
        column, rows = column.take(pa.array(rows)), np.arange(len(rows))
        found = matrix(column)
    if found is None or found.shape[1] != into.shape[1]:
        raise ValueError(f"{of} holds vectors that are not of {into.shape[1]} floats")
    into[:] = found[rows]


def in_utc(table: pa.Table, times: Sequence[str]) -> pa.Table:
    """`table` with its columns `times` in microseconds of UTC; times without a zone are UTC."""
    for name in times:
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(TIME, safe=False))
    return table
