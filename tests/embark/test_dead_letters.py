"""`embark dead-letters`, as far as it needs no server."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from embark import dead_letters
from embark.cli import cli
from embark.console import printable
from embark.dead_letters import as_text, moment
from embark.repo import write_repo
from embark.servers import free_port
from materializer.dead_letter import DeadLetter
from tests.materializer.test_dead_letter_actions import FAILED, letter

STRANGE = letter(1, view="pic__v1", key="\x1b[2J[red]x", reason="Time\nout", detail="\x1b]0;[/] \ud800")


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> list[DeadLetter]:
    found = [letter(0), STRANGE, letter(2, value=b"\x1b\xff", size=2)]
    monkeypatch.setattr(dead_letters, "read", lambda settings: found)
    return found


def run(*arguments: str, folder: Path | None = None) -> Result:
    return CliRunner(env={"EMBARK_REPO": str(folder or "/nowhere")}).invoke(cli, ["dead-letters", *arguments])


def told(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_list_shows_reason_key_and_position_and_nothing_that_moves_a_cursor(letters: list[DeadLetter]) -> None:
    done = run("list")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "NotFound: 404\n  tiny__v1 'a'\n  requests.retry:3:0 given up 2027-01-15 08:00:00 UTC\n"
    )
    assert r"Time\nout: \x1b]0;[/] \ud800" in done.stdout
    assert r"pic__v1 '\x1b[2J[red]x'" in done.stdout
    assert "\x1b" not in done.stdout
    assert "3 dead letters" in done.stderr


def test_a_list_is_narrowed_and_counted(letters: list[DeadLetter]) -> None:
    assert [each["offset"] for each in told("list", "--view", "tiny__v1")] == [0, 2]
    assert [each["offset"] for each in told("list", "--reason", "NotFound", "--view", "pic__v1")] == []
    assert told("list", "--summary") == [
        {"view": "tiny__v1", "reason": "NotFound", "letters": 2},
        {"view": "pic__v1", "reason": "Time\nout", "letters": 1},
    ]
    assert "       2  NotFound             tiny__v1\n" in run("list", "--summary").stdout


def test_one_letter_is_shown_in_full(letters: list[DeadLetter]) -> None:
    done = run("show", "requests.retry:3:0")
    assert "attempt       4\n" in done.stdout
    assert FAILED.encode().decode() in done.stdout
    strange = run("show", "requests.retry:3:2").stdout
    assert "2 bytes, hex:\n1bff\n" in strange
    assert "\x1b" not in run("show", "requests.retry:3:1").stdout
    assert told("show", "requests.retry:3:2")["value"] == "1bff"
    assert told("show", "requests.retry:3:0")["encoding"] == "text"


def test_a_long_message_is_cut_on_a_terminal_and_whole_in_json(letters: list[DeadLetter]) -> None:
    letters.append(letter(9, value=b"x" * 5000, size=6000))
    shown = run("show", "requests.retry:3:9").stdout
    assert "6000 bytes, 5000 kept, text:\n" + "x" * 4096 + " …\n" in shown
    assert told("show", "requests.retry:3:9")["value"] == "x" * 5000


def test_a_position_without_a_letter_is_a_wrong_argument(letters: list[DeadLetter]) -> None:
    done = run("show", "requests:0:0")
    assert done.exit_code == 2
    assert "no dead letter at requests:0:0" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("retry",), "which ones?"),
        (("retry", "--all", "requests:0:0"), "exclude each other"),
        (("purge",), "up to when?"),
        (("purge", "--all", "--before", "2026-01-01"), "up to when?"),
        (("purge", "--before", "yesterday"), "yesterday"),
    ],
)
def test_what_is_to_be_retried_or_removed_must_be_said(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("arguments", [("list",), ("show", "a:0:0"), ("retry", "--all"), ("purge", "--all")])
def test_without_anything_registered_it_says_what_to_do(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_repo(tmp_path / "repo", kafka=f"127.0.0.1:{free_port()}", cassandra_port=free_port())
    done = run(*arguments, folder=tmp_path / "repo")
    assert done.exit_code == 1
    assert "no encoders yet" in done.stderr
    assert "no feature repo at" in run(*arguments, folder=tmp_path).stderr


def test_every_part_has_help() -> None:
    for name, command in dead_letters.dead_letters.commands.items():
        assert command.help, name


@pytest.mark.parametrize(
    ("value", "text"),
    [(b"a\n\tb", "a\n\tb"), ("ü".encode(), "ü"), (b"\xff", None), (b"\x1b[2J", None), ("\u202e".encode(), None)],
)
def test_a_message_is_text_only_where_it_does_nothing_to_a_terminal(value: bytes, text: str | None) -> None:
    assert as_text(value) == text


def test_what_is_not_printable_is_escaped() -> None:
    assert printable("ü\x1b\n\u202e\ud800 [x]") == r"ü\x1b\n\u202e\ud800 [x]"


def test_a_time_that_no_calendar_has_is_a_number() -> None:
    assert moment(0) == "1970-01-01 00:00:00 UTC"
    assert moment(2**63) == f"{2**63} µs after 1970"
