"""Real Kafka and Cassandra, started once a test run on ports of their own, and feature repos applied to them."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feast import FeatureStore

from embark.repo import write_repo
from embark.servers import LocalServers, free_port
from encoders.spec import EncoderSpec
from feature_repo.session import connect
from feature_repo.views import feast_objects

ENCODERS = [
    EncoderSpec(
        name="mobilenet_v3_small",
        version="v1",
        modality="image",
        dim=576,
        network="torchvision:mobilenet_v3_small",
        weights="seeded:0",
    ),
    EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0"),
]
SERVICES = {"ctr_small": ["mobilenet_v3_small__v1", "text_lstm__v1"]}


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    """A running Kafka and a running Cassandra with the keyspace `embark`."""
    running = LocalServers(
        state=tmp_path_factory.mktemp("embark-state"), kafka_port=free_port(), cassandra_port=free_port()
    )
    running.up()
    yield running
    running.down()


@pytest.fixture
def make_repo(servers: LocalServers, tmp_path: Path) -> Callable[..., Path]:
    """Makes and applies a feature repo of a project of its own: two seeded encoders on the running servers."""

    def make(name: str = "repo") -> Path:
        folder = tmp_path / name
        write_repo(
            folder,
            project=f"t{uuid.uuid4().hex[:8]}",
            keyspace=servers.keyspace,
            kafka=servers.kafka_bootstrap,
            cassandra_hosts=servers.cassandra_hosts,
            cassandra_port=servers.cassandra_port,
        )
        # What `feast apply` does, without a process and an import of torch for each test.
        store = FeatureStore(repo_path=str(folder))
        connect(store)
        store.apply(list(feast_objects(ENCODERS, SERVICES, kafka=servers.kafka_bootstrap, repo=folder).values()))
        store._get_provider().online_store._cluster.shutdown()
        return folder

    return make


@pytest.fixture
def feature_repo_dir(make_repo: Callable[..., Path]) -> Path:
    """One applied feature repo."""
    return make_repo()
