"""Hosts that share a registry in PostgreSQL and history on S3: nothing of it lies on a disk of theirs."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore

from embark.repo import open_store, write_repo
from embark.servers import LocalServers
from encoders.client import MemoryRetina, memory_vector
from feature_repo.directory import EncoderDirectory
from feature_repo.offline.compaction import compact_history
from feature_repo.views import encoder_specs
from materializer.messages import EmbedRequest
from materializer.process import create_topics, open_producer, run_worker, topics_of
from tests.hosts.conftest import BUCKET

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

CATALOG = """
from encoders.spec import EncoderSpec

KAFKA = "{kafka}"
HISTORY = "s3://{bucket}/history"
S3_ENDPOINT = "{s3}"
ENCODERS = [
    EncoderSpec(name="text_lstm", version="v1", modality="text", dim={dim}, network="text_lstm", weights="seeded:0")
]
SERVICES = {{"ctr": ["text_lstm__v1"]}}
"""
DIM = 256
VIEW = "text_lstm__v1"
KEYS = [f"title {i}" for i in range(12)]
ENOUGH = 4  # parts of a day that a compaction brings together


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def online(store: FeatureStore, keys: Sequence[str]) -> list[list[float] | None]:
    """What a host serves for each key; None where it is OOV."""
    answer = store.get_online_features([f"{VIEW}:embedding"], [{"text": str(key)} for key in keys]).to_dict()
    found: list[list[float] | None] = answer["embedding"]
    return [each if each is not None and np.any(each) else None for each in found]


def history(store: FeatureStore) -> list[list[float]]:
    """What a host reads of each key's history."""
    asked = pd.DataFrame({"text": KEYS, "event_timestamp": pd.Timestamp.now(tz="UTC")})
    found: list[list[float]] = store.get_historical_features(asked, [f"{VIEW}:embedding"]).to_df()["embedding"].tolist()
    return found


def test_hosts_share_a_registry_in_postgresql_and_history_on_s3(
    tmp_path: Path,
    servers: LocalServers,
    postgres: str,
    s3: tuple[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, client = s3
    monkeypatch.setenv("REGISTRY_URL", postgres)
    for host in ("one", "other"):
        write_repo(
            tmp_path / host,
            kafka=servers.kafka_bootstrap,
            cassandra_hosts=servers.cassandra_hosts,
            cassandra_port=servers.cassandra_port,
            registry="${REGISTRY_URL}",
            history=f"s3://{BUCKET}/history",
            s3_endpoint=endpoint,
        )
    # Only one of them declares encoders, and applies.
    declared = CATALOG.format(kafka=servers.kafka_bootstrap, bucket=BUCKET, s3=endpoint, dim=DIM)
    (tmp_path / "one" / "catalog.py").write_text(declared)
    feast = [Path(sys.executable).with_name("feast"), "-c", tmp_path / "one", "apply"]
    done = subprocess.run(feast, capture_output=True, text=True, check=False, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    def parts() -> list[str]:
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"history/{VIEW}/").get("Contents", [])
        return [each["Key"].rpartition("/")[2] for each in listed]

    one, other = open_store(tmp_path / "one"), open_store(tmp_path / "other")
    of_worker = open_store(tmp_path / "other")  # Feast's stores belong to one thread
    specs = encoder_specs(other)
    assert list(specs) == [VIEW]
    bootstrap, topics = topics_of(other)
    create_topics(bootstrap, topics)
    producer, stop = open_producer(bootstrap), threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with EncoderDirectory(lambda: specs) as directory:
                run_worker(
                    of_worker,
                    directory=directory,
                    retina=MemoryRetina({VIEW: DIM}),
                    stop=stop,
                )
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for burst in np.array_split(KEYS, ENOUGH):  # a part for each
            for key in burst:
                request = EmbedRequest(view=VIEW, key=str(key), requested_at=1_780_000_000_000_000)
                producer.send(topics.live, request.encode(), request.partition_key)
            until(lambda keys=burst: bool(failed) or all(online(one, keys)), "not embedded")  # type: ignore[misc]
            assert failed == []
    finally:
        stop.set()
        worker.join()
        producer.close(timeout=10)
    assert len(parts()) >= ENOUGH
    expected = np.stack([memory_vector(key, DIM) for key in KEYS])
    assert np.allclose(online(one, KEYS), expected)
    assert np.allclose(history(one), expected)
    compacted = compact_history(other, VIEW, grace_seconds=0.0)
    assert compacted[0].parts_after < compacted[0].parts_before
    assert np.allclose(history(one), expected)
    later = compact_history(one, VIEW, grace_seconds=0.0, clock=lambda: time.time() + 3600)
    assert later[0].removed > 0
    assert any("compacted" in name for name in parts())
    assert np.allclose(history(other), expected)
    for host in ("one", "other"):
        assert not (tmp_path / host / "data").exists()
    one._get_provider().online_store._cluster.shutdown()
    for store in (one, other, of_worker):
        for engine in (store.registry.read_engine, store.registry.write_engine):
            engine.dispose()
