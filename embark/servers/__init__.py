"""Local servers: a real Kafka and a real Cassandra, one of each or a cluster, with nothing installed."""

import json
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import psutil
from filelock import FileLock

from embark.servers import cassandra, java, kafka
from embark.servers.cassandra import Node
from embark.servers.kafka import Broker
from embark.servers.ports import check_port, free_port, is_free
from embark.servers.processes import ServerProcess, ServersError

__all__ = ["LocalServers", "ServerStatus", "ServersError", "free_port"]

OVERHEAD_MB = 250  # of a JVM beside its heap
OTHER_PORT = ", or set EMBARK_KAFKA_PORT / EMBARK_CASSANDRA_PORT and the addresses in the feature repo"
MB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerStatus:
    """One server as it is now."""

    name: str
    version: str
    address: str
    port: int
    pid: int | None
    running: bool
    ready: bool  # it answers clients
    log: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a cluster was made with; its data cannot be used with another."""

    nodes: int
    kafka_port: int
    cassandra_port: int
    controller_port: int
    storage_port: int
    cluster_id: str
    keyspace: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalServers:
    """`nodes` brokers of Kafka and as many nodes of Cassandra, on 127.0.0.1 … 127.0.0.N.

    Attributes:
        state: folder of data, logs, configurations and process ids; two of them may run side by side.
        kafka_port, cassandra_port: where clients connect, the same on each address.
        nodes: size of both clusters.
        keyspace: created at `up`, replicated `min(nodes, 3)` times.
    """

    state: Path
    kafka_port: int = 9092
    cassandra_port: int = 9042
    nodes: int = 1
    keyspace: str = "embark"

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.{n}" for n in range(1, self.nodes + 1)]

    @property
    def kafka_bootstrap(self) -> str:
        return ",".join(f"{address}:{self.kafka_port}" for address in self.addresses)

    @property
    def cassandra_hosts(self) -> list[str]:
        return self.addresses

    def up(
        self,
        *,
        report: Callable[[str], None] = lambda _: None,
        arrived: Callable[[str], None] = lambda _: None,
        available_mb: int | None = None,
    ) -> None:
        """Starts what does not run yet, and returns when all of it answers. Harmless where all runs already.

        Args:
            report: told what is being done, a line each.
            arrived: told the name of each jar during the first download.
            available_mb: memory to count with; what the machine has free otherwise.

        Raises:
            ServersError: a port is taken, a download failed, memory is short, or a server died; one line.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        with FileLock(self.state / "up.lock"):
            layout = self._layout()
            brokers, nodes = self._brokers(layout), self._nodes(layout)
            idle = [each for each in self._all(layout) if each.server.process() is None]
            for each in idle:
                inner = each.controller_port if isinstance(each, Broker) else each.storage_port
                check_port(each.server.name, each.address, each.port, OTHER_PORT)
                check_port(each.server.name, each.address, inner, "")
            self._check_memory(idle, psutil.virtual_memory().available // MB if available_mb is None else available_mb)
            kafka_jars, cassandra_jars = self._jars(report, arrived)
            self._store(layout)  # only now: a start that was refused binds to no layout
            if idle:
                report(f"starting {', '.join(each.server.name for each in idle)}")
            try:
                if nodes[0] in idle:  # first, and not waited for yet: of all it takes longest
                    nodes[0].start(cassandra_jars)
                for broker in brokers:
                    if broker in idle:
                        broker.start(kafka_jars)
                for before, node in pairwise(nodes):
                    before.server.wait_until(before.ready, cassandra.READY_SECONDS)  # one joins the ring at a time
                    if node in idle:
                        node.start(cassandra_jars)
                for node in nodes:
                    node.server.wait_until(node.knows_the_others, cassandra.READY_SECONDS)
                for broker in brokers:
                    broker.server.wait_until(broker.ready, kafka.READY_SECONDS)
                nodes[0].create_keyspace(self.keyspace)
            except BaseException:
                _stop([each.server for each in idle])  # half a start is no start
                raise

    def down(self) -> list[str]:
        """Stops what `up` started, and nothing else; the data stays. Returns the names of the servers stopped."""
        layout = self._stored_layout()
        if layout is None:
            return []
        running = [each.server for each in self._all(layout) if each.server.process() is not None]
        _stop(running)
        return [server.name for server in running]

    def status(self) -> list[ServerStatus]:
        """The servers of this state, in order; none before the first `up`."""
        layout = self._stored_layout()
        if layout is None:
            return []
        found = [
            _status(broker.server, java.KAFKA_VERSION, broker.address, broker.port, broker.ready())
            for broker in self._brokers(layout)
        ]
        for node in self._nodes(layout):
            version = node.version()
            shown = version or java.CASSANDRA_VERSION
            found.append(_status(node.server, shown, node.address, node.port, version is not None))
        return found

    def process(self, name: str) -> ServerProcess:
        """The process of `kafka-1`, `cassandra-2`, …

        Raises:
            ServersError: there is no such server.
        """
        layout = self._stored_layout()
        servers = [each.server for each in self._all(layout)] if layout else []
        for server in servers:
            if server.name == name:
                return server
        raise ServersError(f"no server {name!r}; there are: {', '.join(s.name for s in servers) or 'none'}")

    def _stored_layout(self) -> Layout | None:
        file = self.state / "layout.json"
        return Layout(**json.loads(file.read_text())) if file.exists() else None

    def _store(self, layout: Layout) -> None:
        temporary = self.state / "layout.tmp"
        temporary.write_text(json.dumps(asdict(layout), indent=1))
        os.replace(temporary, self.state / "layout.json")  # `status` and `down` may be reading it

    def _layout(self) -> Layout:
        stored = self._stored_layout()
        clients = {self.kafka_port, self.cassandra_port}
        if stored is None:
            controller_port = free_port(self.addresses, besides=clients)
            return Layout(
                nodes=self.nodes,
                kafka_port=self.kafka_port,
                cassandra_port=self.cassandra_port,
                controller_port=controller_port,
                storage_port=free_port(self.addresses, besides=clients | {controller_port}),
                cluster_id=uuid.uuid4().hex[:22],
                keyspace=self.keyspace,
            )
        if stored.nodes != self.nodes:
            raise ServersError(
                f"{self.state} holds the data of {stored.nodes} node(s), not {self.nodes}: `embark down`, then use "
                "another EMBARK_STATE or remove that folder"
            )
        if any(each.server.process() for each in self._all(stored)):
            if (self.kafka_port, self.cassandra_port) != (stored.kafka_port, stored.cassandra_port):
                raise ServersError(
                    f"servers run already on ports {stored.kafka_port} (Kafka) and {stored.cassandra_port} (Cassandra);"
                    " `embark down` before another choice of ports"
                )
            return stored
        stored = replace(stored, kafka_port=self.kafka_port, cassandra_port=self.cassandra_port)
        # Nobody chose the inner ports, so nobody needs to mind when another program has taken one meanwhile. Nodes of
        # a ring, though, know each other by theirs.
        taken = clients | {stored.controller_port, stored.storage_port}
        if not is_free(self.addresses, stored.controller_port):
            stored = replace(stored, controller_port=free_port(self.addresses, besides=taken))
        if self.nodes == 1 and not is_free(self.addresses, stored.storage_port):
            stored = replace(stored, storage_port=free_port(self.addresses, besides=taken))
        return stored

    def _all(self, layout: Layout) -> list[Broker | Node]:
        return [*self._brokers(layout), *self._nodes(layout)]

    def _brokers(self, layout: Layout) -> list[Broker]:
        return [
            Broker(
                node=n,
                address=f"127.0.0.{n}",
                port=layout.kafka_port,
                controller_port=layout.controller_port,
                nodes=layout.nodes,
                cluster_id=layout.cluster_id,
                folder=self.state.resolve() / f"kafka-{n}",
            )
            for n in range(1, layout.nodes + 1)
        ]

    def _nodes(self, layout: Layout) -> list[Node]:
        return [
            Node(
                node=n,
                address=f"127.0.0.{n}",
                port=layout.cassandra_port,
                storage_port=layout.storage_port,
                nodes=layout.nodes,
                folder=self.state.resolve() / f"cassandra-{n}",
            )
            for n in range(1, layout.nodes + 1)
        ]

    def _check_memory(self, idle: list[Broker | Node], available_mb: int) -> None:
        heaps = [kafka.HEAP_MB if isinstance(each, Broker) else cassandra.heap_mb(each.nodes) for each in idle]
        needed = sum(heap + OVERHEAD_MB for heap in heaps)
        if needed > available_mb:
            raise ServersError(
                f"{len(idle)} servers need {needed} MB of memory, {available_mb} MB are available: "
                "close something, or start fewer nodes"
            )

    def _jars(self, report: Callable[[str], None], arrived: Callable[[str], None]) -> list[list[Path]]:
        verified = self.state / "verified-jars.json"
        if not verified.exists():
            report(f"fetching and verifying {java.jar_count()} jars (once)")
        try:
            return java.class_paths(java.KAFKA, java.CASSANDRA, verified=verified, arrived=arrived)
        except java.JarsError as error:
            raise ServersError(str(error)) from error


def _stop(servers: list[ServerProcess]) -> None:
    with ThreadPoolExecutor() as pool:  # all at once: each takes seconds
        list(pool.map(ServerProcess.stop, servers))


def _status(server: ServerProcess, version: str, address: str, port: int, answers: bool) -> ServerStatus:
    process = server.process()
    return ServerStatus(
        name=server.name,
        version=version,
        address=address,
        port=port,
        pid=process.pid if process else None,
        running=process is not None,
        ready=process is not None and answers,
        log=str(server.log),
    )
