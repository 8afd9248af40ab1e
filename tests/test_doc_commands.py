"""Every command in a block of the README or docs/ is run by a test, or has a line under its block that says why not.

Those that need no servers are run here, as they stand, block by block. Addresses that stand for others are replaced:
ports by free ones, example.com by a web server of this machine. Those that need servers are run by
`tests/integration/test_readme.py` and `test_calibration.py`, which take them from the pages, too.
"""

import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from feast import FeatureStore

from embark.child_process import ChildProcess
from embark.cli import cli
from embark.encoders import sample
from embark.servers import free_port
from embark.settings import Settings
from encoders.spec import EncoderSpec
from feature_repo.offline_store import EmbeddingOfflineStore
from feature_repo.views import encoder_specs, feast_objects
from tests.encoders.pictures import file_of, photographs
from tests.encoders.web import serving
from tests.integration.conftest import ENCODERS
from tests.integration.test_calibration import MEASURE, PLAN
from tests.integration.test_readme import PYTEST, RUN_HERE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n(?:\n(\*Not run by the tests[^\n]*\*))?", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"((?:^ {4}\S.*\n)+)(?:\n(\*Not run by the tests[^\n]*\*))?", re.MULTILINE)
MARK = re.compile(r"\*Not run by the tests( as (it|they) stands?)?: \S.{10,}\.\*")
ENDLESS = {"serve", "materialize", "retina", "feature-server", "photographs", "console", "up"}
EMBARK = re.compile(r"\bembark [a-z]")
ELSEWHERE = RUN_HERE | {PYTEST.strip(), f"uv run {MEASURE}", f"uv run {PLAN}"}


@dataclass(frozen=True, slots=True)
class Block:
    """Commands that stand together, and the line under them that says why they are not run; "" where there is none."""

    page: str
    commands: tuple[str, ...]
    mark: str

    def __str__(self) -> str:
        return f"{self.page}: {self.commands[0][:50]}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    found = [(kind, body, mark) for kind, body, mark in FENCE.findall(text) if kind in ("", "bash", "sh")]
    found += [("", body, mark) for body, mark in INDENTED.findall(FENCE.sub("", text))]
    for kind, body, mark in found:
        lines = [line.split("  #")[0].strip() for line in body.replace("\\\n", " ").splitlines()]
        commands = tuple(line for line in lines if line and not line.startswith("#"))
        if commands and (kind or any(re.match(r"(?:[A-Z_]+=\S+ |uv run )*embark ", line) for line in commands)):
            yield Block(page.name, commands, mark)


BLOCKS = [block for page in PAGES for block in blocks(page)]
HERE = [b for b in BLOCKS if not b.mark and not set(b.commands) <= ELSEWHERE]


def test_the_pages_have_commands() -> None:
    assert len(BLOCKS) > 30
    assert 8 < len(HERE) < len(BLOCKS)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.mark], ids=str)
def test_what_is_not_run_says_why(block: Block) -> None:
    assert MARK.fullmatch(block.mark), block.mark
    assert not set(block.commands) <= ELSEWHERE, "it is run"
    for path in re.findall(r"`(tests/[\w/.]+)`", block.mark):
        assert (ROOT / path).exists(), path


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which the commands of the pages have what they ask for."""

    folder: Path
    site: str
    environment: dict[str, str]

    def run(self, line: str) -> str:
        """The output of one command, in this process where it is one of ours; bash does what is not."""
        line = line.replace("https://example.com", self.site)
        if line.startswith('eval "$('):
            return self.in_bash(f"{line}; complete -p embark")
        before, _, line = line.rpartition(" | ")
        given = self.in_bash(before) if before else None
        line, _, file = line.partition(" >> ")
        words = shlex.split(line)
        environment = dict(self.environment)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        assert not ENDLESS & set(words), f"a server never ends, so it is not run here: {line}"
        assert words[: words.index("embark") + 1] in (["uv", "run", "embark"], ["embark"]), line
        arguments = [each for word in words[words.index("embark") + 1 :] for each in self.expanded(word)]
        done = CliRunner(env=environment).invoke(cli, arguments, input=given)
        assert done.exit_code == 0, f"embark {shlex.join(arguments)}: {done.output}\n{done.exception!r}"
        if file:
            (self.folder / file).write_text(done.stdout)
        return done.stdout

    def expanded(self, word: str) -> list[str]:
        return [str(p.relative_to(self.folder)) for p in sorted(self.folder.glob(word))] if "*" in word else [word]

    def in_bash(self, line: str) -> str:
        shown = line.replace("uv run ", "")
        path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        command = ["bash", "-c", f"set -eo pipefail; {shown}"]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{shown}: {done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("docs")
    repo = folder / "feature_repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(
        "project: docs\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(repo))
    store.apply(list(feast_objects(ENCODERS, {}, kafka="broker:9092", repo=repo).values()))
    pictures = {name: file_of(picture) for name, picture in photographs().items()}
    (folder / "cats").mkdir()
    (folder / "cats" / "1.jpg").write_bytes(pictures["cat"])
    (folder / "titles.tsv").write_text("1\ta cup\n2\ta bowl\n")
    with serving({f"/{name}.jpg": picture for name, picture in pictures.items()}) as web:
        urls = [web.url(f"/{name}.jpg") for name in pictures]
        for spec in encoder_specs(store, allow_cache=False).values():
            archive(store, spec, urls if spec.modality == "image" else [f"title {i}" for i in range(len(urls))])
        items = [f"{i},{url},title {i},{url}" for i, url in enumerate(urls)]
        (folder / "items.csv").write_text("\n".join(["item,image_url,text,url", *items]) + "\n")
        (folder / "labelled.csv").write_text(f"left,right,duplicate\n{urls[0]},{urls[1]},1\n{urls[0]},{urls[2]},0\n")
        environment = Settings(repo=repo, state=folder / "state", retina_address=f"127.0.0.1:{free_port()}")
        networks = {"EMBARK_FETCH_NETWORKS": '["127.0.0.0/8"]'}
        yield Place(folder, web.url("/").rstrip("/"), environment.as_environment() | networks)


def archive(store: FeatureStore, spec: EncoderSpec, keys: list[str]) -> None:
    """One embedding of each, of which the first two are near."""
    vectors = np.eye(len(keys), spec.dim, dtype=np.float32)
    vectors[1] = vectors[0] + 0.1 * vectors[1]
    event = 1_767_268_800_000_000 + np.arange(len(keys))
    table = pa.table(
        {
            spec.join_key: keys,
            "embedding": pa.array(list(vectors), pa.list_(pa.float32())),
            "embedding_id": pa.array(np.arange(1, len(keys) + 1), pa.int64()),
            "content_hash": [str(i) for i in range(len(keys))],
            "event_timestamp": pa.array(event).cast(pa.timestamp("us", tz="UTC")),
            "created_timestamp": pa.array(event).cast(pa.timestamp("us", tz="UTC")),
        }
    )
    EmbeddingOfflineStore.offline_write_batch(store.config, store.get_feature_view(spec.view), table, None)


@pytest.mark.parametrize("block", [b for b in HERE if not b.commands[0].startswith("uv run embark retina")], ids=str)
def test_the_commands_of_a_block_run(block: Block, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr("embark.encoders.MEASURE_SECONDS", 0.05)
    monkeypatch.setattr("embark.encoders.sample", lambda spec: dict(list(sample(spec).items())[:2]))
    for line in block.commands:
        assert line in ELSEWHERE or EMBARK.search(line), f"neither run nor marked: {line}"
        if line not in ELSEWHERE:
            assert place.run(line).strip() or ">>" in line


@pytest.mark.parametrize("block", [b for b in HERE if b.commands[0].startswith("uv run embark retina")], ids=str)
def test_retina_runs_until_it_is_stopped(block: Block, place: Place) -> None:
    (line,) = block.commands
    metrics = free_port()
    words = shlex.split(line.replace("50061", str(free_port())).replace("9462", str(metrics)))[3:]

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with ChildProcess("retina", words, place.environment, place.folder / "retina.txt") as retina:
        retina.wait_until(healthy, 120)
        assert retina.stop() == 0


def test_every_command_of_the_readme_that_needs_servers_is_run_with_them() -> None:
    needed = {line for b in BLOCKS if b.page == "README.md" and not b.mark for line in b.commands}
    assert len(needed) > 8
    assert needed <= ELSEWHERE
