"""A Cassandra node on one loopback address."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cassandra import DriverException
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable, Session
from cassandra.policies import WhiteListRoundRobinPolicy

from embark.servers.java import JAVA
from embark.servers.ports import listens
from embark.servers.processes import ServerProcess, ServersError

READY_SECONDS = 180.0
REQUEST_SECONDS = 10.0

# Cassandra 5 on Java 17 reaches into these parts of the JDK (its own conf/jvm17-server.options).
EXPORTS = (
    "java.base/jdk.internal.misc java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry "
    "java.rmi/sun.rmi.server java.sql/java.sql java.base/java.lang.ref java.base/java.lang.reflect"
).split()
OPENS = (
    "java.base/java.lang.module java.base/java.lang.ref java.base/java.lang.reflect java.base/java.io "
    "java.base/java.math java.base/java.net java.base/java.nio java.base/java.nio.charset java.base/java.nio.file.spi "
    "java.base/java.util java.base/java.util.concurrent java.base/java.util.concurrent.atomic "
    "java.base/java.util.concurrent.locks java.base/jdk.internal.loader java.base/jdk.internal.ref "
    "java.base/jdk.internal.reflect java.base/jdk.internal.math java.base/jdk.internal.module "
    "java.base/jdk.internal.util.jar java.base/sun.nio.ch java.management.rmi/com.sun.jmx.remote.internal.rmi "
    "java.rmi/sun.rmi.transport.tcp java.rmi/sun.rmi.server java.rmi/sun.rmi.transport "
    "jdk.management/com.sun.management.internal"
).split()

# A periodic commit log may lose the last 10 s of a machine that dies, and the last 0.1 s of a process that is killed (a
# replay ends at the last mark), as by default; on a cluster the replicas have them.
YAML = """\
cluster_name: embark
num_tokens: 16
commitlog_sync: periodic
commitlog_sync_period: 10000ms
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "127.0.0.1:{storage_port}"}}]
listen_address: {address}
rpc_address: {address}
native_transport_port: {port}
storage_port: {storage_port}
data_file_directories: ["{folder}/data"]
commitlog_directory: "{folder}/commitlog"
saved_caches_directory: "{folder}/saved_caches"
hints_directory: "{folder}/hints"
cdc_raw_directory: "{folder}/cdc"
disk_failure_policy: die
commit_failure_policy: die
"""

LOGBACK = """\
<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{ISO8601} %logger{0}: %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="out"/></root>
</configuration>
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """Node `node` (1 to N) of a cluster of N; the first is the seed."""

    node: int
    address: str
    port: int
    storage_port: int
    nodes: int
    folder: Path
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of cassandra.yaml, beside what stands in YAML

    @property
    def server(self) -> ServerProcess:
        return ServerProcess(name=f"cassandra-{self.node}", folder=self.folder)

    def start(self, jars: list[Path]) -> None:
        """Starts the node; a new one joins the ring of the seed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        yaml, logback = self.folder / "cassandra.yaml", self.folder / "logback.xml"
        yaml.write_text(
            YAML.format(address=self.address, port=self.port, storage_port=self.storage_port, folder=self.folder)
            + "".join(f"{name}: {json.dumps(value)}\n" for name, value in self.extra.items())  # JSON is YAML
        )
        logback.write_text(LOGBACK)
        agent = next(jar for jar in jars if jar.name.startswith("jamm-"))
        heap = heap_mb(self.nodes)
        java = [JAVA, f"-Xms{heap}m", f"-Xmx{heap}m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError", "-Xss512k"]
        java += [f"-javaagent:{agent}", "-Djdk.attach.allowAttachSelf=true", "-Djava.awt.headless=true"]
        java += [f"--add-exports={module}=ALL-UNNAMED" for module in EXPORTS]
        java += [f"--add-opens={module}=ALL-UNNAMED" for module in OPENS]
        java += [f"-Dcassandra.config=file:{yaml}", f"-Dcassandra.storagedir={self.folder}"]
        java += [f"-Dlogback.configurationFile=file:{logback}"]
        # Alone, a node has nobody to hear from; in a ring, others must have learnt of it before it takes a range.
        ring_delay = 0 if self.nodes == 1 else 5000
        java += [f"-Dcassandra.ring_delay_ms={ring_delay}"]
        if self.nodes == 1:
            java += ["-Dcassandra.skip_wait_for_gossip_to_settle=0"]
        java += ["-cp", ":".join(map(str, jars)), "org.apache.cassandra.service.CassandraDaemon"]
        self.server.start(java)

    def ready(self) -> bool:
        """Whether it answers clients."""
        return self.version() is not None

    def version(self) -> str | None:
        """Release that the running node says it is; None where it does not answer."""
        rows = self._ask("SELECT release_version FROM system.local")
        return str(rows[0].release_version) if rows else None

    def knows_the_others(self) -> bool:
        """Whether it answers, and has learnt of all other nodes."""
        peers = self._ask("SELECT peer FROM system.peers_v2")  # counted here: Cassandra warns of a count
        return peers is not None and len(peers) == self.nodes - 1

    def create_keyspace(self, keyspace: str) -> None:
        """Creates `keyspace` where it is not there, replicated `min(nodes, 3)` times.

        Raises:
            ServersError: the node does not do it.
        """
        try:
            with self._session() as session:
                session.execute(
                    f'CREATE KEYSPACE IF NOT EXISTS "{keyspace}" WITH replication = '
                    f"{{'class': 'NetworkTopologyStrategy', 'datacenter1': {min(self.nodes, 3)}}}"
                )
        except (NoHostAvailable, DriverException, OSError) as error:
            raise ServersError(
                f"{self.server.name} does not create the keyspace {keyspace}: {error} (log: {self.server.log})"
            ) from error

    def _ask(self, query: str) -> list[Any] | None:
        if not listens(self.address, self.port):  # the driver would log each refusal
            return None
        try:
            with self._session() as session:
                return list(session.execute(query))
        except (NoHostAvailable, DriverException, OSError):
            return None

    @contextmanager
    def _session(self) -> Iterator[Session]:
        profile = ExecutionProfile(
            load_balancing_policy=WhiteListRoundRobinPolicy([self.address]), request_timeout=REQUEST_SECONDS
        )
        cluster = Cluster(
            [self.address], port=self.port, protocol_version=5, execution_profiles={EXEC_PROFILE_DEFAULT: profile}
        )
        try:
            yield cluster.connect()
        finally:
            cluster.shutdown()


def heap_mb(nodes: int) -> int:
    """Heap of a node, in MB."""
    return 1024 if nodes == 1 else 600
