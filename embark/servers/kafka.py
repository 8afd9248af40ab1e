"""A Kafka broker in KRaft mode: broker and controller in one process, on one loopback address."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from embark.servers.java import JAVA
from embark.servers.ports import listens
from embark.servers.processes import ServerProcess, ServersError

HEAP_MB = 512
READY_SECONDS = 120.0

PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=CLIENT://{address}:{port},CONTROLLER://{address}:{controller_port}
advertised.listeners=CLIENT://{address}:{port}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
num.partitions=6
default.replication.factor={replication}
min.insync.replicas={insync}
offsets.topic.replication.factor={replication}
offsets.topic.num.partitions=8
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr={insync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replication}
share.coordinator.state.topic.min.isr={insync}
group.initial.rebalance.delay.ms=0
"""

# Of slf4j-simple, the one logger in the class path. Above INFO, where a start alone says 1,400 lines.
LOGGING = [
    f"-Dorg.slf4j.simpleLogger.{name}"
    for name in ("defaultLogLevel=warn", "showDateTime=true", "dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Broker:
    """Broker `node` (1 to N) of a cluster of N."""

    node: int
    address: str
    port: int
    controller_port: int
    nodes: int
    cluster_id: str
    folder: Path

    @property
    def server(self) -> ServerProcess:
        return ServerProcess(name=f"kafka-{self.node}", folder=self.folder)

    def start(self, jars: list[Path]) -> None:
        """Formats the data folder where that has not been done, and starts the broker.

        Raises:
            ServersError: the data folder cannot be formatted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        properties = self.folder / "server.properties"
        properties.write_text(self._properties())
        java = [JAVA, f"-Xms{HEAP_MB}m", f"-Xmx{HEAP_MB}m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"]
        java += [*LOGGING, "-cp", ":".join(map(str, jars))]
        if not (self.folder / "data" / "meta.properties").exists():
            done = subprocess.run(  # noqa: S603 - our own command line
                [*java, "kafka.tools.StorageTool", "format", "-t", self.cluster_id, "-c", str(properties)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                self.server.log.write_text(done.stdout + done.stderr)
                raise ServersError(
                    f"{self.server.name} cannot format its data: {self.server.last_words()} (log: {self.server.log})"
                )
        self.server.start([*java, "kafka.Kafka", str(properties)])

    def ready(self) -> bool:
        """Whether it answers clients, and knows all brokers of the cluster."""
        if not listens(self.address, self.port):  # the client would log each refusal
            return False
        try:
            admin = KafkaAdminClient(bootstrap_servers=f"{self.address}:{self.port}", request_timeout_ms=5000)
        except (KafkaError, OSError):
            return False
        try:
            return len(admin.describe_cluster()["brokers"]) == self.nodes
        except (KafkaError, OSError):
            return False
        finally:
            admin.close()

    def _properties(self) -> str:
        replication = min(self.nodes, 3)
        voters = ",".join(f"{n}@127.0.0.{n}:{self.controller_port}" for n in range(1, self.nodes + 1))
        return PROPERTIES.format(
            node=self.node,
            voters=voters,
            address=self.address,
            port=self.port,
            controller_port=self.controller_port,
            data=self.folder / "data",
            replication=replication,
            insync=max(1, replication - 1),
        )
