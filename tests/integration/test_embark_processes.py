"""`embark serve` as several processes on one port, and Feast's feature server, as users start them."""

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from feast import FeatureStore
from feast.data_source import PushMode

from embark.child_process import ChildProcess
from embark.servers import free_port
from embark.settings import Settings
from encoders.client import memory_vector
from feature_repo.embeddings import Status
from feature_repo.views import encoder_specs, push_source_name
from materializer.archive import EmbeddedBatch, table
from serving.client import ClientError, EmbArkClient, NotAllowed

pytestmark = pytest.mark.servers

VIEW = "text_lstm__v1"
KEYS = [f"title {i}" for i in range(50)]


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture
def settings(feature_repo_dir: Path, tmp_path: Path) -> Settings:
    """Settings of two processes over a repo with KEYS online."""
    store = FeatureStore(repo_path=str(feature_repo_dir))
    spec = encoder_specs(store)[VIEW]
    batch = EmbeddedBatch.of(
        VIEW,
        keys=KEYS,
        vectors=np.stack([memory_vector(key, spec.dim) for key in KEYS]),
        event_time=np.full(len(KEYS), 1_700_000_000_000_000, dtype=np.int64),
        content_hash=["00"] * len(KEYS),
        created_at=1_700_000_000_000_001,
    )
    store.push(push_source_name(VIEW), table(spec, batch).to_pandas(), to=PushMode.ONLINE)
    store._get_provider().online_store._cluster.shutdown()
    return Settings(
        repo=feature_repo_dir,
        state=tmp_path / "state",
        embark_address=f"127.0.0.1:{free_port()}",
        processes=2,
        lookup_budget_ms=9_000,  # a busy machine is slow, and no outage
    )


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_restart_under_load_fails_no_call_and_a_killed_process_comes_back(settings: Settings, tmp_path: Path) -> None:
    failed: list[str] = []
    answered: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with EmbArkClient(settings.embark_address) as client:
            while not stop.is_set():
                try:
                    status = client.lookup(VIEW, KEYS, timeout=30).status
                except ClientError as error:
                    failed.append(str(error))
                else:
                    answered.append(int((status == Status.HIT).sum()))

    def answers() -> bool:
        with EmbArkClient(settings.embark_address) as client:
            try:
                return len(client.lookup(VIEW, KEYS, timeout=5).status) > 0
            except ClientError:
                return False

    log = tmp_path / "serve.txt"
    with ChildProcess("serve", ["serve"], settings.as_environment(), log) as parent:

        def children() -> list[int]:
            return sorted(child.pid for child in psutil.Process(parent.pid).children())

        def listening() -> int:
            return log.read_text().count("EmbArk listens on port")

        parent.wait_until(lambda: listening() == 2 and answers(), 200)
        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            until(lambda: len(answered) > 20, "nothing is answered")
            ended, killed = children()
            os.kill(ended, signal.SIGTERM)
            until(lambda: listening() == 3, "a process that ended is not started again")
            seen = len(answered)
            until(lambda: len(answered) > seen + 20, "nothing is answered any more")
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert failed == []
        assert set(answered) == {len(KEYS)}
        os.kill(killed, signal.SIGKILL)
        until(lambda: listening() == 4, "a process that was killed is not started again")
        assert not {ended, killed} & set(children())
        assert answers()
        assert parent.stop() == 0
    kept = settings.state / "hot"
    assert sorted(json.loads(next(kept.rglob(f"{VIEW}.json")).read_text())) == sorted(KEYS)


def test_feasts_feature_server_answers_defaults_to_those_with_a_token_or_none(
    settings: Settings, tmp_path: Path
) -> None:
    port = free_port()
    command = ["feature-server", "--listen", f"127.0.0.1:{port}"]

    def ask(path: str, body: object = None) -> dict[str, object]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else {}

    def healthy() -> bool:
        try:
            ask("/health")
        except OSError:
            return False
        return True

    callers = tmp_path / "callers.toml"
    callers.write_text(f"[callers.a]\ntoken_sha256 = '{'0' * 64}'\nviews = ['*']\n")
    alone = settings.model_copy(update={"processes": 1, "callers": callers})
    with (
        ChildProcess("feature-server", command, settings.as_environment(), tmp_path / "feature-server.txt") as feast,
        ChildProcess("serve", ["serve"], alone.as_environment(), tmp_path / "serve.txt") as embark,
    ):
        feast.wait_until(healthy, 120)
        body = {"features": [f"{VIEW}:embedding"], "entities": {"text": [KEYS[0], "never seen"]}}
        answer = ask("/get-online-features", body)
        results: list[dict[str, list[object]]] = answer["results"]  # type: ignore[assignment]
        (column,) = [each for each in results if isinstance(each["values"][0], list)]
        assert np.allclose(column["values"][0], memory_vector(KEYS[0], 256))  # type: ignore[arg-type]
        assert column["values"][1] == [0.0] * 256
        assert column["statuses"] == ["PRESENT", "NOT_FOUND"]
        embark.wait_until(lambda: "EmbArk listens" in (tmp_path / "serve.txt").read_text(), 120)
        with EmbArkClient(settings.embark_address) as client, pytest.raises(NotAllowed):
            client.lookup(VIEW, KEYS)
