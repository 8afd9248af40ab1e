"""Seeds, and servers that nothing else uses: they are killed."""

from collections.abc import Iterator

import pytest

from embark.servers import LocalServers, free_port


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", metafunc.config.getoption("--chaos-seed") or [1])


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    """A running Kafka and a running Cassandra with the keyspace `embark`."""
    running = LocalServers(
        state=tmp_path_factory.mktemp("chaos-state"), kafka_port=free_port(), cassandra_port=free_port()
    )
    running.up()
    yield running
    running.down()
