"""What a backfill reads: keys, and when each was published, from parquet, CSV or a pipe, a bounded piece at a time."""

import csv
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 4096  # of parquet: 32 MB of the longest keys
MAX_LINE = 1 << 20  # bytes; a key has 8 KiB at most
READ_BYTES = 1 << 16
IDLE_SECONDS = 0.2  # how soon a pipe lets go that gives little: to send what has come, and to be stopped
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
UNITS = {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}  # microseconds: times, then divided by
DAY = (86_400_000_000, 1)
SHOWN_COLUMNS, SHOWN_CHARACTERS = 20, 80  # of a header in an error: a file of another kind has anything there


class InputError(Exception):
    """The input cannot be read as asked; the message says what is wrong with it and what is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the input.

    Attributes:
        number: rows up to and with this one.
        position: how far it is, in the units of `Input.size`.
        key: as it stands there.
        published_at: microseconds since 1970; None where the input does not say.
        problem: why the row cannot be used; empty if it can.
    """

    number: int
    position: int
    key: str = ""
    published_at: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """Rows to be read once.

    Attributes:
        rows: in order; None where a pipe should not be waited for any longer.
        size: what the position of the last row will be: rows of parquet, bytes of CSV; None where nobody knows.
    """

    rows: Iterator[Row | None]
    size: int | None


@contextmanager
def open_file(path: Path, *, key_column: str, time_column: str | None = None, skip: int = 0) -> Iterator[Input]:
    """The rows of a parquet or CSV file, but the first `skip`.

    Raises:
        InputError: no such file, column or format; also while its rows are read.
    """
    readers = {".parquet": _parquet, ".pq": _parquet, ".csv": _csv}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path} is neither {', '.join(readers)} nor - (a pipe)")
    with _readable(path):
        file = path.open("rb")
    with file:
        with _readable(path):
            found = read(file, key_column, time_column, skip)
        yield replace(found, rows=_read(path, found.rows))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error


def _read(path: Path, rows: Iterator[Row | None]) -> Iterator[Row | None]:
    # Around the reading alone: what goes wrong between two rows is no fault of the file's.
    with _readable(path):
        yield from rows


def _parquet(file: BinaryIO, key_column: str, time_column: str | None, skip: int) -> Input:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    for column in filter(None, (key_column, time_column)):
        _check_column(column, schema.names)
    kind = schema.field(key_column).type
    if not _is_text(kind):
        raise InputError(f"column {key_column!r} is {kind}, strings are expected")
    if time_column:
        kind = schema.field(time_column).type
        if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or _is_text(kind)):
            raise InputError(f"column {time_column!r} is {kind}, timestamps, dates or ISO 8601 strings are expected")
    return Input(_parquet_rows(parquet, key_column, time_column, skip), parquet.metadata.num_rows)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parquet_rows(parquet: Any, key_column: str, time_column: str | None, skip: int) -> Iterator[Row]:
    groups = list(range(parquet.num_row_groups))
    number = 0
    while groups and number + parquet.metadata.row_group(groups[0]).num_rows <= skip:
        number += parquet.metadata.row_group(groups.pop(0)).num_rows
    if not groups:
        return
    columns = [column for column in (key_column, time_column) if column]
    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns):
        keys = _texts(batch.column(key_column))
        times = _times(batch.column(time_column)) if time_column else [None] * len(keys)
        for key, published in zip(keys, times, strict=True):
            number += 1
            if number <= skip:
                continue
            if key is None:
                yield Row(number=number, position=number, problem="the key is null")
            else:
                yield _row(number, number, key, published)


def _texts(texts: pa.Array) -> list[str | None]:
    """Texts as `str`; what is no UTF-8 becomes lone surrogates, as in `_Lines`: parquet may hold anything."""
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    try:
        return list(texts.to_pylist())
    except UnicodeDecodeError:
        values = texts.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors="surrogateescape") for value in values]


def _times(times: pa.Array) -> list[Any]:
    """Microseconds since 1970 where Arrow has times, which need not fit into a `datetime`; texts as they are."""
    if _is_text(times.type):
        return _texts(times)
    if pa.types.is_timestamp(times.type):
        numbers, (factor, divisor) = times.cast(pa.int64()), UNITS[times.type.unit]
    elif pa.types.is_date32(times.type):
        numbers, (factor, divisor) = times.cast(pa.int32()), DAY
    else:
        numbers, (factor, divisor) = times.cast(pa.int64()), UNITS["ms"]
    return [None if number is None else number * factor // divisor for number in numbers.to_pylist()]


def _csv(file: BinaryIO, key_column: str, time_column: str | None, skip: int) -> Input:
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InputError(f"line 1 is no header of CSV: {error}") from None
    for column in filter(None, (key_column, time_column)):
        _check_column(column, header)
    rows = _csv_rows(reader, lines, header.index(key_column), header.index(time_column) if time_column else None, skip)
    return Input(rows, os.fstat(file.fileno()).st_size)


class _Lines:
    """Lines of CSV, and the bytes that they took.

    What is no UTF-8 becomes lone surrogates, which no key may hold: the row is refused, and the rest is read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE + 1):
            self._number += 1
            if len(line) > MAX_LINE:
                raise InputError(f"line {self._number} has more than {MAX_LINE} bytes: is this a CSV file?")
            self.position += len(line)
            text = line.decode(errors="surrogateescape")
            yield text.removeprefix("\ufeff") if self._number == 1 else text


def _csv_rows(reader: Any, lines: _Lines, key_at: int, time_at: int | None, skip: int) -> Iterator[Row]:
    number = 0
    while True:
        problem, first = "", reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > first:  # other rows may have gone with this one
                raise InputError(f"line {first} is no CSV: {error}; is a quote never closed?") from None
            cells, problem = [], f"no CSV: {error}"
        if not cells and not problem:
            continue  # an empty line
        number += 1
        if number <= skip:
            continue
        if not problem and max(key_at, time_at or 0) >= len(cells):
            problem = f"the row has {len(cells)} fields only"
        if problem:
            yield Row(number=number, position=lines.position, problem=problem)
        else:
            published = None if time_at is None else cells[time_at].strip() or None
            yield _row(number, lines.position, cells[key_at], published)


def _check_column(column: str, columns: list[str]) -> None:
    if columns.count(column) != 1:
        found = "stands there twice" if column in columns else "is missing"
        shown = ", ".join(repr(name[:SHOWN_CHARACTERS]) for name in columns[:SHOWN_COLUMNS])
        raise InputError(f"column {column!r} {found}; the columns are: {shown or 'none'}")


def open_pipe(descriptor: int, stop: threading.Event) -> Input:
    """The rows of a pipe: a key a line, or `key<TAB>ISO time`; empty lines are none. Ends early once `stop` is set."""
    return Input(_pipe_rows(descriptor, stop), None)


def _pipe_rows(descriptor: int, stop: threading.Event) -> Iterator[Row | None]:
    number = 0
    for line in _pipe_lines(descriptor, stop):
        if line is None:
            yield None
            continue
        text = line.decode(errors="surrogateescape").rstrip("\r")
        text = text if number else text.removeprefix("\ufeff")
        if not text.strip():
            continue
        number += 1
        key, tab, published = text.rpartition("\t")
        if len(line) >= MAX_LINE:
            yield Row(number=number, position=number, problem=f"the line has {MAX_LINE} bytes or more")
        else:
            yield _row(number, number, key, published.strip() or None) if tab else _row(number, number, text, None)


def _pipe_lines(descriptor: int, stop: threading.Event) -> Iterator[bytes | None]:
    """Lines without their ends, of a long one the first `MAX_LINE` bytes; None every now and then."""
    # Not by a file's `readline`, which goes on waiting when a signal has set `stop`.
    rest = b""
    let_go = time.monotonic()
    while not stop.is_set():
        ready, _, _ = select.select([descriptor], [], [], IDLE_SECONDS)
        if not ready or time.monotonic() - let_go >= IDLE_SECONDS:
            yield None
            let_go = time.monotonic()
        if not ready:
            continue
        read = os.read(descriptor, READ_BYTES)
        if not read:
            break
        *lines, last = read.split(b"\n")
        for line in lines:
            yield (rest + line)[:MAX_LINE]
            rest = b""
        rest = (rest + last)[:MAX_LINE]
    if rest and not stop.is_set():
        yield rest


def _row(number: int, position: int, key: str, published: str | int | None) -> Row:
    try:
        return Row(number=number, position=position, key=key, published_at=microseconds(published))
    except ValueError as error:
        return Row(number=number, position=position, key=key, problem=str(error))


def microseconds(moment: str | int | None) -> int | None:
    """A time as microseconds since 1970: such a number, or ISO 8601, in UTC unless it says otherwise.

    Raises:
        ValueError: a text of another form.
    """
    if moment is None or isinstance(moment, int):
        return moment
    try:
        parsed = datetime.fromisoformat(moment)
        return ((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
    except (ValueError, OverflowError):
        raise ValueError(f"no time in ISO 8601, as 2026-01-31T12:00:00Z: {moment[:40]!r}") from None
