"""Real Kafka and Cassandra, started once a test run on ports of their own, and feature repos applied to them."""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embark.repo import write_repo
from embark.servers import LocalServers, free_port

FEAST = Path(sys.executable).with_name("feast")

CATALOG = """
from encoders.spec import EncoderSpec

KAFKA = "{kafka}"
ENCODERS = [
    EncoderSpec(
        name="mobilenet_v3_small", version="v1", modality="image", dim=576,
        network="torchvision:mobilenet_v3_small", weights="seeded:0",
    ),
    EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0"),
]
SERVICES = {{"ctr_small": ["mobilenet_v3_small__v1", "text_lstm__v1"]}}
"""


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
        (folder / "catalog.py").write_text(CATALOG.format(kafka=servers.kafka_bootstrap))
        feast_apply(folder)
        return folder

    return make


@pytest.fixture
def feature_repo_dir(make_repo: Callable[..., Path]) -> Path:
    """One applied feature repo."""
    return make_repo()


def feast_apply(folder: Path) -> str:
    """Runs Feast's own `feast apply` in a repo, as a user would; returns what it printed."""
    done = subprocess.run([FEAST, "apply"], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
