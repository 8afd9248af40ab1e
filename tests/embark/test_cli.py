import io
import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from embark.cli import cli
from embark.lookups import print_answer
from embark.repo import write_repo
from embark.servers import free_port
from embark.settings import Settings
from feature_repo.embeddings import Status
from serving.client import Answer

EMBARK = Path(sys.executable).with_name("embark")
README = Path(__file__).parent.parent.parent / "README.md"


def embark(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = Settings(
        embark_address=f"127.0.0.1:{free_port()}", kafka_port=free_port(), cassandra_port=free_port()
    ).as_environment()
    return subprocess.run(
        [EMBARK, *arguments],
        cwd=folder,
        env=settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    for each in expected:
        assert each in lines[0]


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = README.read_text()
    for name, command in cli.commands.items():
        assert command.help, name
        assert re.search(rf"embark {name}\b", readme), name


def test_a_look_up_without_a_server_says_how_to_start_it(tmp_path: Path) -> None:
    done = embark(tmp_path, "lookup", "text_lstm__v1", "a")
    assert_one_line(done, "EmbArk does not answer at 127.0.0.1:", "embark serve")


def test_a_public_address_without_tls_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    done = embark(tmp_path, "serve", "--listen", "0.0.0.0:0", "--processes", "2")
    assert_one_line(done, "0.0.0.0:0 can be reached from other machines", "EMBARK_TLS_CERTIFICATE", "EMBARK_PLAINTEXT")


def test_a_token_is_printed_beside_the_table_that_names_its_hash() -> None:
    done = CliRunner().invoke(cli, ["token", "ranker", "--view", "text_lstm__v1", "--max-keys", "9"])
    table = tomllib.loads(done.stdout)["callers"]["ranker"]
    assert (table["views"], table["max_keys"], table["announce"]) == (["text_lstm__v1"], 9, False)
    assert len(table["token_sha256"]) == 64
    assert CliRunner().invoke(cli, ["token", "no name"]).exit_code == 2


def test_applying_without_servers_says_how_to_start_them(tmp_path: Path) -> None:
    write_repo(tmp_path / "feature_repo", cassandra_port=free_port())
    assert_one_line(embark(tmp_path, "apply"), "Cassandra does not answer at 127.0.0.1:", "embark up")


@pytest.mark.parametrize("part", ["serve", "materialize"])
def test_a_part_without_servers_says_how_to_start_them(part: str, tmp_path: Path) -> None:
    write_repo(tmp_path / "feature_repo", cassandra_port=free_port(), kafka=f"127.0.0.1:{free_port()}")
    assert_one_line(embark(tmp_path, part), "embark up")


@pytest.mark.parametrize("part", ["apply", "serve", "materialize", "retina"])
def test_without_a_feature_repo_the_folder_is_named(part: str, tmp_path: Path) -> None:
    assert_one_line(embark(tmp_path, part), str(tmp_path / "feature_repo"), "EMBARK_REPO")


def test_up_on_a_busy_port_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_one_line(embark(tmp_path, "up", EMBARK_KAFKA_PORT=port), f"127.0.0.1:{port}")


def test_status_and_down_before_the_first_up(tmp_path: Path) -> None:
    status = embark(tmp_path, "status", "--json")
    assert (status.returncode, json.loads(status.stdout)) == (1, [])
    down = embark(tmp_path, "down", "--json")
    assert (down.returncode, json.loads(down.stdout)) == (0, {"stopped": []})


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    done = embark(tmp_path, "status", EMBARK_KAFKA_PORT="many")
    assert done.returncode == 2
    assert "kafka_port" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_writes_a_repo_once(tmp_path: Path) -> None:
    assert embark(tmp_path, "init", "shop", "--kafka", "broker:9").returncode == 0
    assert 'KAFKA = "broker:9"' in (tmp_path / "shop" / "catalog.py").read_text()
    assert_one_line(embark(tmp_path, "init", "shop"), "holds a feature repo already")


def test_a_wrong_network_is_refused(tmp_path: Path) -> None:
    write_repo(tmp_path / "feature_repo")
    done = embark(tmp_path, "retina", "--allow-network", "everything")
    assert done.returncode == 2
    assert "fetch_networks" in done.stderr


def test_a_package_of_another_project_is_named(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "__init__.py").write_text("")
    done = embark(tmp_path, "status", PYTHONPATH=str(tmp_path))
    assert_one_line(done, "'serving'", str(tmp_path))


def test_brackets_in_a_key_or_a_reason_are_shown_as_they_are() -> None:
    answer = Answer(
        vectors=np.zeros((1, 2), dtype=np.float32),
        status=np.array([Status.FAILED], dtype=np.uint8),
        embedding_id=np.zeros(1, dtype=np.int64),
        event_time=np.zeros(1, dtype=np.int64),
        failures={0: "DecodeError: [/nothing] closed"},
        weights="seeded:0",
    )
    out = Console(width=200, record=True, file=io.StringIO())
    print_answer(out, "v", ["[red]x[/]"], answer, 1.0)
    shown = out.export_text()
    assert "[red]x[/]" in shown
    assert "[/nothing] closed" in shown
    assert "NOT pretrained" in shown


def test_a_token_and_a_repo_are_told_as_json(tmp_path: Path) -> None:
    made = json.loads(CliRunner().invoke(cli, ["token", "ranker", "--json"]).stdout)
    assert list(tomllib.loads(made["table"])["callers"]) == [made["name"]] == ["ranker"]
    assert len(made["token"]) > 30
    wrote = json.loads(CliRunner().invoke(cli, ["init", str(tmp_path / "shop"), "--json"]).stdout)
    assert Path(wrote["catalog"]).exists()
