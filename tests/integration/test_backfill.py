"""`embark backfill` and `embark dead-letters` on real Kafka and Cassandra; only Retina is in memory."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from feast import FeatureStore
from kafka import KafkaConsumer, TopicPartition

from embark import repo
from embark.cli import cli
from embark.settings import Settings
from encoders.client import Outcome
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Embeddings
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.views import encoder_specs
from materializer.messages import EmbedRequest
from materializer.process import open_producer, run_worker, topics_of
from tests.integration.test_materializer import in_thread, wait_until
from tests.materializer.fakes import ScriptedRetina

pytestmark = pytest.mark.servers

VIEW = "text_lstm__v1"
NOON = 1_767_268_800_000_000  # µs since 1970: 2026-01-01 12:00 UTC
KEYS = [f"key {number}" for number in range(200)]
BROKEN = [f"broken {number}" for number in range(3)]
GONE = Outcome(reason="NotFound", detail="404")


class Shop:
    """One project on the servers, the `embark` command for it, and a worker when it is wanted."""

    def __init__(self, repo_folder: Path, folder: Path) -> None:
        self.settings = Settings(repo=repo_folder, state=folder / "state")
        self.environment = self.settings.as_environment()
        self.stores: list[FeatureStore] = []
        self.store = self.open_store()
        self.servers, self.topics = topics_of(self.store)
        self.spec = encoder_specs(self.store)[VIEW]
        self.rows = FeastOnlineRows(self.store)
        self.retina = ScriptedRetina({VIEW: self.spec})

    def open_store(self) -> FeatureStore:
        self.stores.append(FeatureStore(repo_path=str(self.settings.repo)))
        return self.stores[-1]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "embark", *arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Result:
        """The command in this process: no second import of Feast."""
        return CliRunner(env=self.environment).invoke(cli, arguments)

    def told(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    @contextmanager
    def working(self) -> Iterator[None]:
        store, directory_store = self.open_store(), self.open_store()

        def run(stop: threading.Event) -> None:
            with EncoderDirectory(lambda: encoder_specs(directory_store, allow_cache=False)) as directory:
                run_worker(store, directory=directory, retina=self.retina, stop=stop)

        with in_thread(run):
            yield

    def online(self, keys: Sequence[str]) -> Embeddings:
        return self.rows.read(self.spec, keys)

    def count(self, topic: str) -> int:
        with closing(KafkaConsumer(bootstrap_servers=self.servers)) as consumer:
            partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
            ends = consumer.end_offsets(partitions).values() if partitions else ()
            return sum(ends)


@pytest.fixture
def shop(feature_repo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(feature_repo_dir, tmp_path)
    # A command's connection ends with its process, which here is the tests'.
    monkeypatch.setattr(repo, "open_store", lambda _: made.open_store())
    yield made
    for store in made.stores:
        if cluster := store._get_provider().online_store._cluster:
            cluster.shutdown()


def finished(process: subprocess.Popen[str], status: int, given: str | None = None) -> tuple[Any, str]:
    """What a command told as JSON, and its standard error."""
    output, errors = process.communicate(given, timeout=60)
    assert process.returncode == status, errors
    return json.loads(output), errors


def test_a_backfill_that_is_interrupted_goes_on_and_all_of_it_is_embedded(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "keys.csv"
    file.write_text("text,at\n" + "".join(f"{key},2026-01-01T12:00:00Z\n" for key in KEYS))
    command = ["backfill", "--view", VIEW, "--from", str(file), "--key-column", "text", "--time-column", "at"]

    # a dry run sends nothing
    dry = shop.told(*command, "--dry-run")
    assert (dry["read"], dry["sent"], shop.count(shop.topics.bulk)) == (len(KEYS), len(KEYS), 0)

    # Ctrl-C: what was sent is counted and remembered
    process = shop.start(*command, "--json", "--rate", "50")
    wait_until(lambda: shop.count(shop.topics.bulk) > 20 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    first, errors = finished(process, 130)
    assert errors.splitlines() == [
        f"stopped after row {first['read']}: the same command goes on from there"
    ]  # and no warning of any library
    assert not first["complete"]
    assert 20 < first["sent"] == first["read"] == shop.count(shop.topics.bulk) < len(KEYS)

    # the same command again sends the rest, and nothing twice
    done = shop.run(*command, "--json")
    assert f"goes on after row {first['read']}" in done.stderr
    second = json.loads(done.stdout)
    assert (second["complete"], second["resumed_after"]) == (True, first["read"])
    assert first["sent"] + second["sent"] == len(KEYS) == shop.count(shop.topics.bulk)

    # a pipe, with a key that is known by then in another form
    with shop.working():
        wait_until(lambda: bool(shop.online(KEYS).found.all()))
        piped, _ = finished(shop.start("backfill", "--view", VIEW, "--from", "-", "--json"), 0, f" {KEYS[0]} \nnew\n")
        assert (piped["archived"], piped["sent"]) == (1, 1)
        wait_until(lambda: bool(shop.online(["new"]).found.all()))
    assert set(shop.online(KEYS).event_time) == {NOON}

    # once done, the file is gone over again: all of it is archived
    again = shop.told(*command)
    assert (again["resumed_after"], again["archived"], again["sent"]) == (0, len(KEYS), 0)


def test_dead_letters_are_listed_shown_sent_again_and_removed(shop: Shop) -> None:
    shop.retina.outcomes = {key: [GONE] for key in BROKEN}
    retried, *others = BROKEN
    with shop.working():
        wait_until(lambda: shop.topics.live in topic_names(shop.servers))
        with closing(open_producer(shop.servers)) as producer:
            for key in BROKEN:
                request = EmbedRequest(view=VIEW, key=key, requested_at=NOON)
                producer.send(shop.topics.live, request.encode(), request.partition_key)
            producer.send(shop.topics.live, b"\xff\x1b[2J", b"k")
            producer.flush(timeout=30)
        wait_until(lambda: shop.count(shop.topics.dead_letters) == 4)

        # list and show
        assert shop.told("dead-letters", "list", "--summary") == [
            {"view": VIEW, "reason": "NotFound", "letters": 3},
            {"view": "", "reason": "MalformedMessage", "letters": 1},
        ]
        (poison,) = shop.told("dead-letters", "list", "--reason", "MalformedMessage")
        shown = shop.run("dead-letters", "show", poison["position"]).stdout
        assert "5 bytes, hex:\nff1b5b32 4a\n" in shown
        position = {each["key"]: each["position"] for each in shop.told("dead-letters", "list", "--view", VIEW)}

        # retry: its source is mended, its mark is gone, it is embedded as of when it was first asked for
        del shop.retina.outcomes[retried]
        sent = shop.told("dead-letters", "retry", position[retried], "--yes")
        assert sent == {"sent": 1, "letters": [position[retried]], "refused": []}
        wait_until(lambda: bool(shop.online([retried]).found.all()))
        assert list(shop.online([retried]).event_time) == [NOON]
        assert not shop.online(others).found.any()

        # all of them: what is no request is refused, what still fails is a dead letter once more
        refused = shop.run("dead-letters", "retry", "--all", "--yes")
        assert refused.exit_code == 0
        assert "3 requests sent again; 1 letters without a request left out" in refused.stdout
        assert f"{poison['position']} cannot be sent again" in refused.stderr
        wait_until(lambda: shop.count(shop.topics.dead_letters) == 6)
    assert shop.run("dead-letters", "retry", poison["position"], "--yes").exit_code == 1

    # purge: nothing is that old; without a yes nothing goes; then all of it
    assert shop.told("dead-letters", "purge", "--before", "2020-01-01")["removed"] == 0
    assert shop.run("dead-letters", "purge", "--all").exit_code == 1
    assert len(shop.told("dead-letters", "list")) == 6
    assert shop.told("dead-letters", "purge", "--all", "--yes")["removed"] == 6
    assert shop.told("dead-letters", "list") == []


def topic_names(servers: str) -> set[str]:
    with closing(KafkaConsumer(bootstrap_servers=servers)) as consumer:
        return set(consumer.topics())
