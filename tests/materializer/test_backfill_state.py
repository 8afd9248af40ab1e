"""How far a backfill came, in a file that may be missing, old or broken."""

import os
from pathlib import Path

import pytest

from materializer.backfill_state import Job, StateFile


def job(path: Path, *, view: str = "tiny__v1", key_column: str = "key", servers: str = "broker:9092") -> Job:
    return Job.of(path, key_column=key_column, time_column=None, view=view, servers=servers, topic="requests.bulk")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "keys.csv"
    path.write_text("key\na\nb\n")
    return path


def test_a_job_goes_on_where_it_stood_until_it_is_forgotten(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "states"
    state = StateFile(folder, job(source))
    assert state.load() is None
    state.save(1)
    state.save(2)
    assert StateFile(folder, job(source)).load() == 2
    assert [path.suffix for path in folder.iterdir()] == [".json"]
    state.forget()
    state.forget()
    assert state.load() is None


def test_a_relative_path_is_the_same_job(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StateFile(tmp_path / "states", job(source)).save(7)
    monkeypatch.chdir(tmp_path)
    assert StateFile(tmp_path / "states", job(Path("keys.csv"))).load() == 7


@pytest.mark.parametrize("change", ["content", "time", "key_column", "servers", "view"])
def test_a_job_that_differs_in_anything_begins_anew(tmp_path: Path, source: Path, change: str) -> None:
    StateFile(tmp_path / "states", job(source)).save(2)
    other = job(source)
    if change == "content":
        found = source.stat()
        source.write_text("key\na\nc\n")
        os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns))
        other = job(source)
    elif change == "time":
        os.utime(source, ns=(0, 1))
        other = job(source)
    elif change == "key_column":
        other = job(source, key_column="text")
    elif change == "servers":
        other = job(source, servers="elsewhere:9092")
    else:
        other = job(source, view="tiny__v2")
    assert StateFile(tmp_path / "states", other).load() is None


def test_two_views_of_one_file_do_not_share_a_state(tmp_path: Path, source: Path) -> None:
    one, other = StateFile(tmp_path, job(source)), StateFile(tmp_path, job(source, view="tiny__v2"))
    one.save(1)
    other.save(2)
    assert (one.load(), other.load()) == (1, 2)


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"rows": 2}', b'{"job": {}, "rows": "2"}', b"0"]
)
def test_a_broken_state_file_begins_anew(tmp_path: Path, source: Path, broken: bytes) -> None:
    state = StateFile(tmp_path / "states", job(source))
    state.save(2)
    state.path.write_bytes(broken)
    assert state.load() is None
    state.save(3)
    assert state.load() == 3


@pytest.mark.parametrize("rows", ["true", "-1", "0", "1.5", "null"])
def test_a_number_of_rows_that_is_none_begins_anew(tmp_path: Path, source: Path, rows: str) -> None:
    state = StateFile(tmp_path / "states", job(source))
    state.save(12345)
    state.path.write_text(state.path.read_text().replace("12345", rows))
    assert state.load() is None


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, source: Path) -> None:
    state = StateFile(tmp_path / "states", job(source))
    state.save(2)
    state.path.with_suffix(".new").mkdir()
    with pytest.raises(OSError, match="directory"):
        state.save(3)
    assert state.load() == 2
