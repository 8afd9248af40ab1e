"""Keys and times from parquet, CSV and pipes, as strangers write them."""

import csv
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from materializer import backfill_input
from materializer.backfill_input import MAX_LINE, InputError, Row, microseconds, open_file, open_pipe

NOON = 1_767_268_800_000_000  # µs since 1970: 2026-01-01 12:00 UTC
MIDNIGHT = NOON - 12 * 3_600_000_000


def read(path: Path, *, key: str = "key", time_column: str | None = None, skip: int = 0) -> list[Row]:
    with open_file(path, key_column=key, time_column=time_column, skip=skip) as given:
        found = list(given.rows)
    assert None not in found
    return [each for each in found if each is not None]


def keys(rows: Sequence[Row]) -> list[str]:
    return [each.key for each in rows]


def parquet(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "keys.parquet", **options)
    return folder / "keys.parquet"


def csv_file(folder: Path, content: bytes) -> Path:
    (folder / "keys.csv").write_bytes(content)
    return folder / "keys.csv"


# ── parquet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_keys_are_strings_of_any_kind_and_null_is_none(tmp_path: Path, kind: pa.DataType) -> None:
    rows = read(parquet(tmp_path, {"n": [1, 2, 3], "key": pa.array(["a", None, "ü"], pa.string()).cast(kind)}))
    assert [(each.number, each.key, each.problem) for each in rows] == [
        (1, "a", ""),
        (2, "", "the key is null"),
        (3, "ü", ""),
    ]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON // 1_000_000, None], pa.timestamp("s")),
        pa.array([NOON // 1000, None], pa.timestamp("ms", tz="UTC")),
        pa.array([NOON, None], pa.timestamp("us", tz="Europe/Berlin")),
        pa.array([NOON * 1000, None], pa.timestamp("ns")),
        pa.array(["2026-01-01T12:00:00Z", None], pa.string()),
        pa.array(["2026-01-01 13:00+01:00", None], pa.large_string()),
        pa.array(["2026-01-01 12:00", None], pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=lambda times: str(times.type),
)
def test_times_of_any_kind_are_microseconds(tmp_path: Path, times: pa.Array) -> None:
    rows = read(parquet(tmp_path, {"key": ["a", "b"], "t": times}), time_column="t")
    assert [each.published_at for each in rows] == [NOON, None]
    assert [each.problem for each in rows] == ["", ""]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()], ids=str)
def test_a_date_is_its_first_moment(tmp_path: Path, kind: pa.DataType) -> None:
    times = pa.array([date(2026, 1, 1), None, date(1969, 12, 31)], kind)
    rows = read(parquet(tmp_path, {"key": ["a", "b", "c"], "t": times}), time_column="t")
    assert [each.published_at for each in rows] == [MIDNIGHT, None, -86_400_000_000]


def test_a_time_that_python_has_no_date_for_stops_nothing(tmp_path: Path) -> None:
    times = pa.array([2**62], pa.timestamp("ms"))
    assert read(parquet(tmp_path, {"key": ["a"], "t": times}), time_column="t")[0].published_at == 2**62 * 1000
    days = pa.array([2**31 - 1], pa.date32())
    (day,) = read(parquet(tmp_path, {"key": ["a"], "t": days}), time_column="t")
    assert day.published_at == (2**31 - 1) * 86_400_000_000


def test_bytes_that_are_no_utf8_spoil_their_own_row_only(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"], pa.binary()).buffers())
    rows = read(parquet(tmp_path, {"key": bad}))
    assert keys(rows) == ["\udcff", "ok"]


@pytest.mark.parametrize("skip", [0, 1, 3, 4, 5, 9, 10, 11])
def test_skipped_rows_are_those_before_across_row_groups(tmp_path: Path, skip: int) -> None:
    path = parquet(tmp_path, {"key": [f"k{number}" for number in range(10)]}, row_group_size=4)
    rows = read(path, skip=skip)
    assert [(each.number, each.key) for each in rows] == [(n + 1, f"k{n}") for n in range(skip, 10)]
    with open_file(path, key_column="key") as given:
        assert given.size == 10
    assert all(each.position == each.number for each in rows)


def test_a_parquet_column_that_cannot_be_a_key_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"key": [1, 2], "name": ["a", "b"], "flag": [True, False]})
    with pytest.raises(InputError, match="'key' is int64, strings are expected"):
        read(path)
    with pytest.raises(InputError, match="'nope' is missing; the columns are: 'key', 'name', 'flag'"):
        read(path, key="nope")
    with pytest.raises(InputError, match="'flag' is bool, timestamps, dates or ISO"):
        read(path, key="name", time_column="flag")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"key\na\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet cannot be read"):
        read(path)


def test_a_parquet_file_that_is_damaged_inside_is_said_so(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"key": [f"key {n * 7919 % 1000}" for n in range(2000)]})
    damaged = bytearray(path.read_bytes())
    damaged[4:200] = bytes(196)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_with_a_bom_quotes_line_ends_of_windows_and_empty_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfkey,t\r\n"a\r\nb, ""c""",2026-01-01\r\n\r\n d ,\r\n'
    rows = read(csv_file(tmp_path, content), time_column="t")
    assert [(each.number, each.key, each.published_at) for each in rows] == [
        (1, 'a\r\nb, "c"', MIDNIGHT),
        (2, " d ", None),
    ]
    assert rows[-1].position == len(content)


def test_the_position_of_a_csv_row_is_in_bytes_of_the_file(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "key\nü\nb".encode())
    with open_file(path, key_column="key") as given:
        assert given.size == 8
        assert [each.position for each in given.rows if each] == [7, 8]


def test_a_csv_row_that_is_wrong_is_refused_by_itself(tmp_path: Path) -> None:
    content = b'n,key,t\n1,a,2026-01-01\n2\n3,"b"x,\n4,\xff,\n5,c,yesterday\n6,d,\n'
    rows = read(csv_file(tmp_path, content), time_column="t")
    assert [(each.number, each.key) for each in rows] == [
        (1, "a"),
        (2, ""),
        (3, ""),
        (4, "\udcff"),
        (5, "c"),
        (6, "d"),
    ]
    problems = [each.problem for each in rows]
    assert "1 fields only" in problems[1]
    assert problems[2].startswith("no CSV: ")
    assert problems[4] == "no time in ISO 8601, as 2026-01-31T12:00:00Z: 'yesterday'"
    assert [problems[0], problems[3], problems[5]] == ["", "", ""]  # the key of the fourth is refused where it is used


@pytest.mark.parametrize("tail", [b"", b"c\n" * 200_000])
def test_a_quote_that_is_never_closed_stops_the_reading(tmp_path: Path, tail: bytes) -> None:
    path = csv_file(tmp_path, b'key\na\n"b\nc\n' + tail)
    found: list[Any] = []
    with (
        pytest.raises(InputError, match=r"line 3 is no CSV: .*is a quote never closed"),
        open_file(path, key_column="key") as given,
    ):
        found.extend(given.rows)
    assert keys(found) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'key' is missing; the columns are: none"),
        (b"a,b\n1,2\n", "'key' is missing; the columns are: 'a', 'b'"),
        (b"key,key\n1,2\n", "'key' stands there twice"),
        (b"\xff\xfek\0e\0y\0", "'key' is missing"),
        (b'"key\n', "no header of CSV"),
        (b"key\n" + b"x" * (MAX_LINE + 1), f"line 2 has more than {MAX_LINE} bytes"),
        (b"\x1b[31m\n", r"the columns are: '\\x1b\[31m'"),
    ],
    ids=["empty", "other", "twice", "utf16", "open quote", "long line", "escape"],
)
def test_a_csv_file_that_cannot_be_read_as_asked_is_said_so(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(csv_file(tmp_path, content))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)), st.integers(0, 30))
def test_what_pythons_writer_writes_is_read_and_skipped_row_by_row(texts: list[str], skip: int) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerows([["key", "n"], *([text, number] for number, text in enumerate(texts))])
    with tempfile.TemporaryDirectory() as folder:
        rows = read(csv_file(Path(folder), written.getvalue().encode()), skip=skip)
    assert [(each.number, each.key) for each in rows] == [(n + 1, t) for n, t in enumerate(texts)][skip:]


@pytest.mark.parametrize("name", ["keys.txt", "keys", "keys.json"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("key\na\n")
    with pytest.raises(InputError, match=r"neither \.parquet, \.pq, \.csv nor - \(a pipe\)"):
        read(tmp_path / name)


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "nothing.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path / "folder.csv")


def test_an_error_between_two_rows_is_not_the_files(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"key\na\n")
    full = OSError("disk full")
    with pytest.raises(OSError, match="disk full"), open_file(path, key_column="key"):
        raise full


# ── pipes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)


def test_a_line_of_a_pipe_is_a_key_or_a_key_and_a_time() -> None:
    with pipe() as (reading, writing):
        os.write(writing, b"\xef\xbb\xbfa\n\n \nb\t2026-01-01T12:00:00Z\r\nc\tx\nd\t\n\xff\ne e")
        os.close(writing)
        given = open_pipe(reading, threading.Event())
        assert given.size is None
        rows = [each for each in given.rows if each]
    assert [(each.number, each.key, each.published_at) for each in rows] == [
        (1, "a", None),
        (2, "b", NOON),
        (3, "c", None),
        (4, "d", None),
        (5, "\udcff", None),
        (6, "e e", None),
    ]
    assert [bool(each.problem) for each in rows] == [False, False, True, False, False, False]


def test_a_pipe_that_pauses_says_so_and_goes_on() -> None:
    with pipe() as (reading, writing):
        rows = open_pipe(reading, threading.Event()).rows
        os.write(writing, b"a\nhal")
        assert getattr(next(rows), "key", None) == "a"
        assert next(rows) is None
        os.write(writing, b"f\n")
        os.close(writing)
        assert [each.key for each in rows if each] == ["half"]


def test_a_pipe_that_trickles_lets_go_every_now_and_then() -> None:
    with pipe() as (reading, writing):
        rows = open_pipe(reading, threading.Event()).rows
        os.write(writing, b"a\n")
        assert next(rows) is not None
        time.sleep(backfill_input.IDLE_SECONDS)
        os.write(writing, b"b\n")
        assert next(rows) is None
        assert getattr(next(rows), "key", None) == "b"
        os.close(writing)


def test_a_pipe_that_says_nothing_can_be_stopped() -> None:
    stop = threading.Event()
    with pipe() as (reading, writing):
        rows = open_pipe(reading, stop).rows
        os.write(writing, b"unfinished")
        assert next(rows) is None
        stop.set()
        assert list(rows) == []
        os.close(writing)


def test_a_line_that_is_too_long_is_refused_in_bounded_memory_and_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backfill_input, "MAX_LINE", 100)
    monkeypatch.setattr(backfill_input, "READ_BYTES", 64)
    with pipe() as (reading, writing):
        os.write(writing, b"x" * 1000 + b"\n" + b"y" * 99 + b"\n" + b"z" * 1000)
        os.close(writing)
        rows = [each for each in open_pipe(reading, threading.Event()).rows if each]
    assert [each.problem for each in rows] == ["the line has 100 bytes or more", "", "the line has 100 bytes or more"]
    assert keys(rows) == ["", "y" * 99, ""]


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_in_iso_8601_is_exact(moment: datetime) -> None:
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6
    assert microseconds(moment.isoformat()) == pytest.approx(expected, abs=64)
    assert microseconds(moment.replace(tzinfo=None).isoformat()) == microseconds(moment.isoformat())


@pytest.mark.parametrize("text", ["", "now", "1767268800", "2026-13-01", "0001-01-01T00:00:00+14:00x", "\x1b[2J"])
def test_a_text_that_is_no_time_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="no time in ISO 8601") as error:
        microseconds(text)
    assert "\x1b" not in str(error.value)
