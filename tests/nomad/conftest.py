"""A real Nomad on real Kafka and Cassandra, with all four jobs of `deploy/nomad`."""

import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from feast import FeatureStore

from embark.repo import write_repo
from embark.servers import LocalServers, free_port
from encoders.spec import EncoderSpec
from feature_repo.session import connect
from feature_repo.views import feast_objects
from tests.nomad.agent import Agent, running_agent, until
from tests.nomad.binary import nomad_binary

JOBS = Path(__file__).parents[2] / "deploy" / "nomad"
BIN = Path(sys.executable).parent
TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0")


@dataclass(frozen=True, slots=True)
class Deployed:
    """The running system.

    Attributes:
        embark: address of EmbArk: Envoy's.
        kafka: bootstrap servers.
        project: of the feature repo.
        common: variables that each job of ours takes.
    """

    agent: Agent
    embark: str
    kafka: str
    project: str
    common: dict[str, object]

    def wait(self, job: str, count: int) -> None:
        """Waits until a job's newest version runs so often, healthy, and no other."""
        until(lambda: self.agent.settled(job, count), f"{job} is not settled:\n{self.agent.state(job)}")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    binary = nomad_binary()
    folder = tmp_path_factory.mktemp("nomad")
    servers = LocalServers(state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port())
    servers.up()
    try:
        project = f"n{uuid.uuid4().hex[:8]}"
        repo = folder / "repo"
        write_repo(
            repo,
            project=project,
            kafka=servers.kafka_bootstrap,
            cassandra_hosts=servers.cassandra_hosts,
            cassandra_port=servers.cassandra_port,
        )
        store = FeatureStore(repo_path=str(repo))
        connect(store)
        store.apply(list(feast_objects([TEXT], {}, kafka=servers.kafka_bootstrap, repo=repo).values()))
        store._get_provider().online_store._cluster.shutdown()
        # One thread each: two cores have eight processes to start.
        with running_agent(binary, folder, os.environ | {"OMP_NUM_THREADS": "1"}) as agent:
            common: dict[str, object] = {"embark": BIN / "embark", "repo": repo}
            ports = {"embark_port": free_port(), "retina_port": free_port()}
            agent.run(JOBS / "envoy.nomad.hcl", envoy=BIN / "envoy", **ports)
            agent.run(JOBS / "retina.nomad.hcl", **common, warm=[TEXT.view], device="cpu")
            # A busy machine is slow, and no outage.
            common_embark = {**common, "lookup_budget_ms": 9000}
            agent.run(JOBS / "embark.nomad.hcl", **common_embark, count=1)
            agent.run(JOBS / "kfc.nomad.hcl", **common, retina_port=ports["retina_port"])
            yield Deployed(agent, f"127.0.0.1:{ports['embark_port']}", servers.kafka_bootstrap, project, common_embark)
    finally:
        servers.down()
