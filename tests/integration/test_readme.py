"""The README's commands, as a newcomer types them; `uv run` is left out, since this test runs under it."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from embark.child_process import ChildProcess
from embark.repo import write_repo
from embark.servers import free_port
from embark.settings import Settings

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
DEMO, PYTEST, *STEPS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
BACKFILLS = re.findall(r"## Backfill\n\n```bash\n(.*?)```", (ROOT / "docs" / "how-to.md").read_text(), re.DOTALL)[0]
APPLY, DOWN = "uv run embark apply", "uv run embark down"
RUN_HERE = {line for block in (DEMO, *STEPS, BACKFILLS, APPLY, DOWN) for line in block.strip().splitlines()}
ADD_ENCODER, CLIENT, FEAST, TRAINING = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NOTEBOOK = (ROOT / "examples" / "first_look.py").read_text()
NOTEBOOK_HELD = """
assert (answer.status == Status.HIT).all(), answer.status
assert course[0]["OOV"] >= 6 and cosines.shape == (8, 8)  # two were looked up before
assert len(plt.get_fignums()) == 2 and all(plt.figure(number).axes for number in plt.get_fignums())
"""
READY_SECONDS = 90.0


def run(command: str, folder: Path, environment: dict[str, str], *, status: int = 0) -> str:
    """The output of a command of the README."""
    words = shlex.split(command)
    assert words[:2] == ["uv", "run"], command
    done = subprocess.run(
        [BIN / words[2], *words[3:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_ci_calls_the_readmes_test_command() -> None:
    assert PYTEST.strip() in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.servers
@pytest.mark.timeout(600)
def test_the_demo_holds(tmp_path: Path) -> None:
    command = DEMO.strip() + " --json demo.json"
    output = run(command, tmp_path, dict(os.environ))
    seen: dict[str, Any] = json.loads((tmp_path / "demo.json").read_text())
    assert seen["held"]
    assert all(step["held"] for step in seen["steps"])
    assert seen["servers"] == {"kafka": "4.1.0", "cassandra": "5.0.5"}
    assert seen["latency_ms"]["oov"]["n"] == len([i for i in seen["items"] if i["view"] != "resnet18__v1"])
    assert {i["expected"] for i in seen["items"]} == {"HIT", "FAILED"}
    assert all(item["timeline"][-1][1] == item["expected"] for item in seen["items"])
    failures = {item["failure"].partition(":")[0] for item in seen["items"] if item["expected"] == "FAILED"}
    assert failures == {"NotFound", "DecodeError", "Blocked", "KeyRefused"}
    assert [e["view"] for e in seen["encoders"] if e["registered_while_running"]] == ["resnet18__v1"]
    assert all(count >= 36 for count in seen["history_rows"].values())
    for encoder in seen["encoders"]:  # what is not pretrained is said, and nothing else is
        assert (f"{encoder['view']} has seeded weights" in output) == (not encoder["pretrained"])
    report = (tmp_path / "demo-report.html").read_text()
    assert "Every step held." in report
    assert not (tmp_path / ".embark" / "demo").exists()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Ports of our own where the README takes the defaults, in an empty folder with the feature repo in it."""
    settings = Settings(
        state=tmp_path / "state",
        kafka_port=free_port(),
        cassandra_port=free_port(),
        embark_address=f"127.0.0.1:{free_port()}",
        retina_address=f"127.0.0.1:{free_port()}",
    )
    write_repo(
        tmp_path / "feature_repo",
        kafka=f"127.0.0.1:{settings.kafka_port}",
        cassandra_port=settings.cassandra_port,
    )
    environment = settings.as_environment()
    yield environment
    run(DOWN, tmp_path, environment)


@pytest.mark.servers
@pytest.mark.timeout(600)
def test_the_steps_work_as_they_stand(tmp_path: Path, environment: dict[str, str]) -> None:
    starts, retina, materialize, serve, photographs, lookups, failures, in_advance = STEPS
    up, apply = starts.strip().splitlines()
    port = free_port()
    run(up, tmp_path, environment)
    run(apply, tmp_path, environment)
    with ExitStack() as stack:

        def in_a_terminal_of_its_own(command: str) -> ChildProcess:
            words = shlex.split(command)
            assert words[:3] == ["uv", "run", "embark"]
            process = ChildProcess(words[3], words[3:], environment, tmp_path / f"{words[3]}.txt", folder=tmp_path)
            return stack.enter_context(process)

        for command in (retina, materialize, serve):
            in_a_terminal_of_its_own(command)
        site = in_a_terminal_of_its_own(photographs.replace("8000", str(port)))
        served = tmp_path / "serve.txt"
        deadline = time.monotonic() + READY_SECONDS
        while "listens on" not in served.read_text():
            assert time.monotonic() < deadline, served.read_text()
            time.sleep(0.2)
        site.wait_until(lambda: answers(f"http://127.0.0.1:{port}/photographs/astronaut.jpg"), READY_SECONDS)

        # ask twice: OOV, then HIT
        first, second = lookups.replace("8000", str(port)).strip().splitlines()
        assert run(first, tmp_path, environment, status=1).splitlines()[1].startswith("OOV")
        assert run(second, tmp_path, environment).splitlines()[1].startswith("HIT")

        # what is no picture fails with a reason, and is a dead letter
        missing, letters = failures.replace("8000", str(port)).strip().splitlines()
        assert "NotFound: the server answers 404" in " ".join(run(missing, tmp_path, environment, status=1).split())
        assert run(letters, tmp_path, environment).startswith("NotFound: the server answers 404\n")
        (letter,) = json.loads(run(letters + " --json", tmp_path, environment))
        assert letter["key"] == f"http://127.0.0.1:{port}/missing.jpg"

        # in advance: one is archived by now, the other was never looked up before it is a hit
        coffee = f"http://127.0.0.1:{port}/photographs/coffee.jpg"
        (tmp_path / "items.csv").write_text(f"url\n{coffee}\n{coffee.replace('coffee', 'astronaut')}\n")
        assert "1 archived before, 0 duplicates, 0 refused, 1 sent" in run(in_advance, tmp_path, environment)
        assert run(second.replace("astronaut", "coffee"), tmp_path, environment).splitlines()[1].startswith("HIT")

        counted, _ = (run(line, tmp_path, environment) for line in BACKFILLS.strip().splitlines())
        assert "2 archived before" in counted

        # one more encoder, while all of it runs
        catalog = tmp_path / "feature_repo" / "catalog.py"
        catalog.write_text(catalog.read_text() + f"\nENCODERS.append({ADD_ENCODER})\n")
        run(APPLY, tmp_path, environment)
        applied = time.monotonic()
        late = second.replace("mobilenet_v3_small__v1", "resnet18__v1")
        assert run(late, tmp_path, environment).splitlines()[1].startswith("HIT")
        assert time.monotonic() - applied < 60

        # from Python
        address = environment["EMBARK_EMBARK_ADDRESS"]
        for example in (CLIENT.replace("127.0.0.1:50051", address), FEAST + TRAINING):
            code = ["-W", "error::UserWarning", "-c", example]
            done = subprocess.run(
                [sys.executable, *code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stderr

        # the notebook, which draws and computes nothing of use unless all of it are hits
        notebook = NOTEBOOK.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}")
        code = ["-W", "error::UserWarning", "-c", notebook + NOTEBOOK_HELD]
        done = subprocess.run(
            [sys.executable, *code],
            cwd=tmp_path,
            env=environment | {"MPLBACKEND": "Agg"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "as_served      ['OOV', 'HIT'] (2, 576)" in done.stdout
        assert "as_of_content  ['HIT', 'HIT'] (2, 576)" in done.stdout

        # mistakes are answered in one line that says what to do
        unknown = run("uv run embark lookup nope__v1 x --json", tmp_path, environment, status=1)
        assert unknown == ""
    assert run("uv run embark status", tmp_path, environment).count("ready") == 2


def answers(url: str) -> bool:
    """Whether a web server answers."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False
