"""The online store on three nodes of Cassandra, some of which are killed, hung and started again."""

import asyncio
import faulthandler
import multiprocessing
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cassandra import ConsistencyLevel, DriverException
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import RoundRobinPolicy
from cassandra.query import QueryTrace, TraceUnavailable
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_source import PushSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Float32, String
from feast.value_type import ValueType

from embark.servers import free_port, java
from embark.servers.cassandra import READY_SECONDS, Node
from embark.servers.ports import listens
from feature_repo.embeddings import Status
from feature_repo.online.cluster import HEARTBEAT_SECONDS, RECONNECT_SECONDS, Connection
from feature_repo.online.reads import chunks
from feature_repo.online.rows import RowToWrite
from feature_repo.online.views import text_keys
from feature_repo.online.writes import WriteFailed
from feature_repo.online_store import EmbeddingOnlineStore
from feature_repo.session import StoreUnavailable

pytestmark = pytest.mark.cluster

DIM = 16
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
PATIENCE = 90.0
SLACK = 10.0  # s, of a machine that runs three nodes and the rest of a suite on two cores
QUORUM = {"read_consistency": "QUORUM", "write_consistency": "QUORUM"}
ITEM = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)


@dataclass
class Repo:
    """A feature repo of one view on the cluster: what a test reads and writes, through the plugin alone."""

    folder: Path
    settings: dict[str, Any]
    project: str
    view: FeatureView = field(init=False)
    store: FeatureStore = field(init=False)

    def __post_init__(self) -> None:
        config = {
            "project": self.project,
            "provider": "local",
            "registry": {"path": str(self.folder / "registry.db"), "cache_ttl_seconds": 3600},
            "online_store": {"type": "feature_repo.online_store.EmbeddingOnlineStore"} | self.settings,
            "entity_key_serialization_version": 3,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
        self.store = FeatureStore(repo_path=str(self.folder))
        history = FileSource(name="history", path=str(self.folder / "none.parquet"), timestamp_field="at")
        self.view = FeatureView(
            name="items",
            entities=[ITEM],
            schema=[
                Field(name="item", dtype=String),
                Field(name="embedding", dtype=Array(Float32), vector_length=DIM),
            ],
            source=PushSource(name="pushed", batch_source=history),
            ttl=timedelta(0),
        )

    def apply(self) -> "Repo":
        self.store.apply([ITEM, self.view])
        return self

    @property
    def online(self) -> EmbeddingOnlineStore:
        online: EmbeddingOnlineStore = self.store._get_provider().online_store
        return online

    @property
    def cluster(self) -> Cluster:
        return self.online._cluster

    def replicas(self, key: str) -> list[str]:
        (stored,) = text_keys("item", [key])
        keyspace = self.settings["keyspace"]
        return [host.address for host in self.cluster.metadata.get_replicas(keyspace, stored)]

    def write(self, keys: Sequence[str], number: int, progress: Callable[[int], Any] | None = None) -> None:
        """Writes `number` to all components of all keys, as of second `number`."""
        self.online.online_write_batch(self.store.config, self.view, rows_of(keys, number), progress)

    async def write_async(self, keys: Sequence[str], number: int) -> None:
        await self.online.online_write_batch_async(self.store.config, self.view, rows_of(keys, number), None)

    def matrix(self, keys: Sequence[str]) -> list[int | None]:
        """The number of each key by `read_matrix`; None where there is none."""
        found = self.online.read_matrix(self.store.config, self.view, keys)
        numbers = found.vectors[:, 0]
        assert (found.vectors == numbers[:, None]).all()  # no row is a mixture of two
        hit = found.status == Status.HIT
        return [int(number) if there else None for number, there in zip(numbers, hit, strict=True)]

    def features(self, keys: Sequence[str]) -> list[int | None]:
        """The same by `get_online_features`."""
        answer = self.store.get_online_features(["items:embedding"], [{"item": key} for key in keys]).to_dict()
        return [None if vector is None else int(vector[0]) for vector in answer["embedding"]]

    def features_async(self, keys: Sequence[str]) -> list[int | None]:
        """The same by `get_online_features_async`."""
        rows = [{"item": key} for key in keys]
        response = asyncio.run(self.store.get_online_features_async(["items:embedding"], rows))
        return [None if vector is None else int(vector[0]) for vector in response.to_dict()["embedding"]]

    def rows(self, keys: Sequence[str]) -> list[int | None]:
        """The same by `online_read`."""
        return self._numbers(self.online.online_read(self.store.config, self.view, [entity_key(key) for key in keys]))

    async def rows_async(self, keys: Sequence[str]) -> list[int | None]:
        """The same by `online_read_async`."""
        asked = [entity_key(key) for key in keys]
        return self._numbers(await self.online.online_read_async(self.store.config, self.view, asked))

    @staticmethod
    def _numbers(found: Sequence[tuple[datetime | None, dict[str, Value] | None]]) -> list[int | None]:
        return [None if values is None else int(values["embedding"].float_list_val.val[0]) for _, values in found]

    def close(self) -> None:
        asyncio.run(self.online.close())


def entity_key(key: str) -> EntityKey:
    return EntityKey(join_keys=["item"], entity_values=[Value(string_val=key)])


def rows_of(keys: Sequence[str], number: int) -> list[RowToWrite]:
    value = {"embedding": Value(float_list_val=FloatList(val=[number] * DIM))}
    return [(entity_key(key), value, EPOCH + timedelta(seconds=number), None) for key in keys]


def keys_of(prefix: str, count: int) -> list[str]:
    return [f"{prefix}/{i}" for i in range(count)]


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ring:
    """Three nodes of Cassandra without a Kafka, started side by side: each is told its ranges instead of joining."""

    folder: Path
    jars: list[Path]
    port: int = field(default_factory=free_port)
    storage_port: int = field(default_factory=free_port)
    keyspace: str = "embark"

    @property
    def nodes(self) -> list[Node]:
        return [self.node(n) for n in (1, 2, 3)]

    def node(self, n: int) -> Node:
        tokens = [-(2**63) + i * (2**64 // 48) for i in range(n - 1, 48, 3)]  # 16 of each node, in turn
        return Node(
            node=n,
            address=f"127.0.0.{n}",
            port=self.port,
            storage_port=self.storage_port,
            nodes=3,
            folder=self.folder / f"cassandra-{n}",
            extra={"initial_token": ",".join(map(str, tokens)), "auto_bootstrap": False},
        )

    def repair(self) -> None:
        """Starts the nodes that are down, and waits until a read of all replicas succeeds by way of each."""
        for node in self.nodes:
            if node.server.process() is None:
                node.start(self.jars)
            if node.node == 1:  # the others ask it for their way
                node.server.wait_until(lambda: listens("127.0.0.1", self.storage_port), READY_SECONDS)
        for node in self.nodes:
            node.server.wait_until(node.knows_the_others, READY_SECONDS)
        self.node(1).create_keyspace(self.keyspace)
        until(self._answers_whole, "the cluster is whole again")

    def _answers_whole(self) -> bool:
        level = ConsistencyLevel.ALL
        profile = ExecutionProfile(RoundRobinPolicy(), consistency_level=level, request_timeout=10)
        hosts, profiles = [node.address for node in self.nodes], {EXEC_PROFILE_DEFAULT: profile}
        cluster = Cluster(hosts, port=self.port, protocol_version=5, execution_profiles=profiles)
        try:
            session = cluster.connect(self.keyspace)
            session.execute("CREATE TABLE IF NOT EXISTS whole (k int PRIMARY KEY)")
            for host in cluster.metadata.all_hosts():
                session.execute("SELECT k FROM whole WHERE k = 0", host=host)
        except (NoHostAvailable, DriverException):
            return False
        finally:
            cluster.shutdown()
        return True

    def process(self, n: int) -> psutil.Process:
        running = self.node(n).server.process()
        assert running is not None
        return running

    def kill(self, *nodes: int) -> None:
        doomed = [self.process(n) for n in nodes]
        for each in doomed:
            each.kill()
        for each in doomed:
            each.wait(30)

    @contextmanager
    def hung(self, n: int) -> Iterator[None]:
        """Node `n` does not answer, and keeps its connections."""
        stopped = self.process(n)
        stopped.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            stopped.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    folder = tmp_path_factory.mktemp("ring")
    (jars,) = java.class_paths(java.CASSANDRA, verified=folder / "verified-jars.json")
    ring = Ring(folder, jars)
    try:
        ring.repair()
        yield ring
    finally:
        for node in ring.nodes:
            if (running := node.server.process()) is not None:
                running.kill()  # nobody needs its data


@pytest.fixture
def ring(started: Ring) -> Ring:
    """Three nodes, each of which counts the two others as up."""
    started.repair()
    return started


@pytest.fixture
def make_repo(ring: Ring, tmp_path: Path) -> Iterator[Callable[..., Repo]]:
    """Makes feature repos on the ring, with settings of the online store."""
    with ExitStack() as opened:

        def make(project: str = "", **settings: Any) -> Repo:
            hosts = {"hosts": [node.address for node in ring.nodes], "port": ring.port, "keyspace": ring.keyspace}
            name = project or f"t{uuid.uuid4().hex[:8]}"
            repo = Repo(tmp_path / uuid.uuid4().hex, hosts | settings, name)
            opened.callback(repo.close)
            return repo

        yield make


def until(holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Load:
    """Writers of ever greater numbers, each of keys of its own, and readers, of whom each knows what was acknowledged.

    A read that begins after a write was acknowledged answers that number or a greater one: quorums overlap.
    """

    def __init__(self, repo: Repo, writers: int = 2, count: int = 60) -> None:
        self.repo = repo
        self.keys = [keys_of(f"writer{writer}", count) for writer in range(writers)]
        self.acknowledged = {key: 0 for keys in self.keys for key in keys}
        self.failed_writes: list[WriteFailed] = []
        self.reads: list[tuple[float, float]] = []  # when it began, how many seconds it took
        self.rounds = [0] * writers
        self._end = threading.Event()
        self._errors: list[BaseException] = []

    def __enter__(self) -> "Load":
        for keys in self.keys:
            self.repo.write(keys, 0)
        ways = (self.repo.matrix, self.repo.features, self.repo.features_async)
        loops = [lambda writer=writer: self._write(writer) for writer in range(len(self.keys))]
        loops += [lambda way=way: self._read(way) for way in ways]
        self._threads = [threading.Thread(target=self._guarded, args=(loop,)) for loop in loops]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        if self._errors:
            raise self._errors[0]

    def goes_on(self, rounds: int = 5, reads: int = 20) -> None:
        """Waits until every writer has made that many rounds more, and the readers that many reads."""
        wanted, read = [done + rounds for done in self.rounds], len(self.reads) + reads
        until(
            lambda: (
                bool(self._errors)
                or (len(self.reads) >= read and all(a >= b for a, b in zip(self.rounds, wanted, strict=True)))
            ),
            "reads and writes go on",
        )

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            while not self._end.wait(0.02):
                loop()
        except BaseException as error:  # noqa: BLE001 - told at the end, in the test's own thread
            self._errors.append(error)

    def _write(self, writer: int) -> None:
        number, keys = self.rounds[writer] + 1, self.keys[writer]
        lost: set[int] = set()
        try:
            self.repo.write(keys, number)
        except WriteFailed as error:
            self.failed_writes.append(error)
            lost = set(error.failures)
        self.acknowledged.update((key, number) for i, key in enumerate(keys) if i not in lost)
        self.rounds[writer] = number

    def _read(self, way: Callable[[Sequence[str]], list[int | None]]) -> None:
        least = dict(self.acknowledged)
        began = time.monotonic()
        found = dict(zip(least, way(list(least)), strict=True))
        self.reads.append((began, time.monotonic() - began))
        lost = older(found, least)
        assert not lost, f"{way.__name__}: key: (found, acknowledged); read again: {way(list(lost))}"


def older(found: dict[str, int | None], least: dict[str, int]) -> dict[str, tuple[int | None, int]]:
    """Keys whose number is less than it was acknowledged, or not there."""
    return {key: (found[key], number) for key, number in least.items() if number_of(found[key]) < number}


def assert_not_older(found: dict[str, int | None], least: dict[str, int]) -> None:
    assert not older(found, least), "key: (found, acknowledged)"


def number_of(found: int | None) -> int:
    return -1 if found is None else found


# ── keys go to a replica ─────────────────────────────────────────────────────────────────────────────────────────────


class WatchedSession:
    """A session that keeps the driver's future of each statement, which it may have traced."""

    def __init__(self, session: Any, *, trace: bool = False) -> None:
        self.session = session
        self.trace = trace
        self.futures: list[Any] = []

    def execute_async(self, statement: Any, **arguments: Any) -> Any:
        future = self.session.execute_async(statement, trace=self.trace, **arguments)
        self.futures.append(future)
        return future

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


@contextmanager
def watched(repo: Repo, *, trace: bool = False) -> Iterator[WatchedSession]:
    """The session of the repo's store, watched; opened where it was not."""
    repo.online._get_session(repo.store.config)
    connection = repo.online._connection
    assert connection is not None
    session = WatchedSession(connection.session, trace=trace)
    repo.online._connection = Connection(connection.cluster, session)
    try:
        yield session
    finally:
        repo.online._connection = connection


def answered_by(repo: Repo, keys: Sequence[str]) -> set[str]:
    """The nodes that a read of the keys was answered by; none where it failed."""
    with watched(repo) as session:
        try:
            repo.matrix(keys)
        except StoreUnavailable:
            return set()
        return {future.coordinator_host.address for future in session.futures}


def nodes_of(future: Any) -> tuple[str, set[str]]:
    """Who coordinated a traced statement, and which nodes had work with it."""
    trace = QueryTrace(future.get_query_trace_ids()[0], future.session)
    trace.populate(max_wait=10, query_cl=ConsistencyLevel.ALL)  # Cassandra writes it beside its work, to any node
    return trace.coordinator, {event.source for event in trace.events}


def test_every_key_is_read_by_a_node_that_has_it(make_repo: Callable[..., Repo]) -> None:
    keyspace = f"one_{uuid.uuid4().hex[:8]}"
    repo = make_repo(keyspace=keyspace, replication={"datacenter1": 1}, read_chunk_size=20).apply()
    keys = keys_of("routed", 90)
    repo.write(keys, 7)
    owners = {key: repo.replicas(key) for key in keys}
    assert {len(nodes) for nodes in owners.values()} == {1}
    assert {node for (node,) in owners.values()} == {"127.0.0.1", "127.0.0.2", "127.0.0.3"}

    reads: list[Sequence[Any]] = []
    for way in (repo.matrix, repo.features, repo.features_async, repo.rows):
        with watched(repo, trace=True) as session:
            assert way(keys) == [7] * len(keys)
        assert 3 <= len(session.futures) <= 3 + len(keys) // 20  # full chunks, but for the last of each node
        reads.append(session.futures)

    # What the traces tell where it is otherwise: the node that is asked passes the question on.
    config = repo.store.config
    statement = repo.online._statement(config, repo.online._view(config, repo.view).table.select(["embedding"]))
    stored = [key for key in text_keys("item", keys[:1]) if key is not None]
    (bound,) = chunks(statement, repo.cluster.metadata, keyspace, stored, 20)
    (owner,) = owners[keys[0]]
    other = next(host for host in repo.cluster.metadata.all_hosts() if host.address != owner)

    def told_of_both() -> bool:
        future = repo.online._get_session(config).execute_async(bound, trace=True, host=other)
        assert len(list(future.result().current_rows)) == 1
        try:
            return nodes_of(future) == (other.address, {other.address, owner})
        except TraceUnavailable:
            return False

    until(told_of_both, "a trace of two nodes is written")

    for futures in reads:  # older than that one: written, too
        coordinators = set()
        for future in futures:
            coordinator, worked = nodes_of(future)
            assert worked == {coordinator}
            coordinators.add(coordinator)
        assert coordinators == {"127.0.0.1", "127.0.0.2", "127.0.0.3"}


def test_a_write_that_several_nodes_are_given_is_over_when_every_row_is_acknowledged(
    make_repo: Callable[..., Repo],
) -> None:
    # So early that most rows are given to two nodes: the driver calls back for both answers.
    repo = make_repo(**QUORUM, request_timeout=30.0, speculative_delay=0.001, write_concurrency=16).apply()
    keys = keys_of("often", 150)
    repo.write(keys, 1)
    for number in range(2, 5):
        heard: list[int] = []
        with watched(repo) as session:
            repo.write(keys, number, heard.append)
            acknowledged = [future._event.is_set() for future in session.futures]
        assert acknowledged == [True] * len(keys)
        assert heard == [1] * len(keys)
        assert any(len(future.attempted_hosts) > 1 for future in session.futures)
        assert repo.matrix(keys) == [number] * len(keys)


# ── one node of three ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_node_costs_no_read_and_no_acknowledged_write(ring: Ring, make_repo: Callable[..., Repo]) -> None:
    repo = make_repo(**QUORUM, request_timeout=10.0).apply()
    with Load(repo) as load:
        load.goes_on()
        ring.kill(2)
        load.goes_on(rounds=15, reads=60)
    assert [error.args for error in load.failed_writes] == []  # two of three nodes are a quorum
    keys = list(load.acknowledged)
    for way in (repo.matrix, repo.features, repo.features_async, repo.rows):
        assert_not_older(dict(zip(keys, way(keys), strict=True)), load.acknowledged)


def test_a_hung_node_delays_reads_by_the_speculative_delay_and_comes_back(
    ring: Ring, make_repo: Callable[..., Repo], caplog: pytest.LogCaptureFixture
) -> None:
    # One key to a query: Cassandra, too, asks a third replica where the second is slow, but of the keys of one query it
    # does so one after the other.
    repo = make_repo(**QUORUM, request_timeout=30.0, speculative_delay=0.2, read_chunk_size=1).apply()
    # The same rows, of which one replica is enough; and the same without speculation, which only heartbeats help.
    quick = make_repo(repo.project, request_timeout=10.0, speculative_delay=0.2, read_consistency="LOCAL_ONE")
    patient = make_repo(repo.project, request_timeout=1.5, read_consistency="LOCAL_ONE")
    with Load(repo, count=15) as load:
        load.goes_on()
        hit = [key for key in load.acknowledged if repo.replicas(key)[0] == "127.0.0.3"]
        assert hit
        assert None not in quick.matrix(hit)
        # A client that could not connect to the node at once, on a slow machine, would ask the others.
        until(lambda: answered_by(patient, hit) == {"127.0.0.3"}, "the node is asked first")
        with ring.hung(3):
            # At once: a heartbeat may give the node up from now on, after which others are asked without a wait.
            with pytest.raises(TimeoutError):
                asyncio.run(asyncio.wait_for(patient.rows_async(hit), 0.5))
            with pytest.raises(StoreUnavailable, match="OperationTimedOut"):
                patient.matrix(hit)
            assert "never retrieved" not in caplog.text
            began = time.monotonic()
            assert None not in quick.matrix(hit) + quick.rows(hit)
            assert time.monotonic() - began < 0.2 + SLACK
            load.goes_on()
            until(lambda: succeeds(lambda: patient.matrix(hit)), "others are asked", 4 * HEARTBEAT_SECONDS)
        until(lambda: all(host.is_up for host in repo.cluster.metadata.all_hosts()), "the node is used again")
        load.goes_on()
    assert [error.args for error in load.failed_writes] == []
    keys = list(load.acknowledged)
    assert_not_older(dict(zip(keys, repo.matrix(keys), strict=True)), load.acknowledged)


# ── no node at all ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_while_all_nodes_are_down_every_call_says_so_and_the_same_store_goes_on_after(
    ring: Ring, make_repo: Callable[..., Repo]
) -> None:
    seconds = 4.0
    repo = make_repo(request_timeout=seconds).apply()
    unopened = make_repo(repo.project, request_timeout=seconds)
    keys = keys_of("outage", 100)
    repo.write(keys, 1)
    assert repo.features(keys) == repo.features_async(keys) == [1] * len(keys)
    ring.kill(1, 2, 3)

    calls: dict[str, Callable[[], Any]] = {
        "read_matrix": lambda: repo.matrix(keys),
        "online_read": lambda: repo.rows(keys),
        "online_read_async": lambda: asyncio.run(repo.rows_async(keys)),
        "get_online_features": lambda: repo.features(keys),
        "get_online_features_async": lambda: repo.features_async(keys),
        "online_write_batch": lambda: repo.write(keys, 2),
        "online_write_batch_async": lambda: asyncio.run(repo.write_async(keys, 2)),
        "the first read of a store": lambda: unopened.rows(keys),
        "the first write of a store": lambda: unopened.write(keys, 2),
    }
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(StoreUnavailable) as refused:
            call()
        assert time.monotonic() - began < seconds + SLACK, name
        told = str(refused.value)
        assert told.startswith("items: "), name
        assert "did not answer: no" in told.lower() or "100 of 100 rows were not written" in told, name

    ring.repair()
    for name, call in calls.items():
        until(lambda call=call: succeeds(call), name, RECONNECT_SECONDS[1] + seconds + SLACK)
    assert repo.matrix(keys) == [2] * len(keys)


def succeeds(call: Callable[[], Any]) -> bool:
    try:
        call()
    except StoreUnavailable:
        return False
    return True


# ── more than one process ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # of Python 3.12, where there are threads
def test_a_forked_process_gets_a_session_of_its_own_and_leaves_its_parents_alone(
    make_repo: Callable[..., Repo],
) -> None:
    repo = make_repo(request_timeout=30.0).apply()
    keys = keys_of("forked", 50)
    repo.write(keys, 1)
    assert repo.matrix(keys) == [1] * len(keys)
    parents = repo.cluster
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def child(number: int) -> None:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)  # where it waits, should it wait for ever
        try:
            for _ in range(20):
                assert repo.matrix(keys) == [1] * len(keys)
            repo.write([f"{number}/{key}" for key in keys], number)
            assert repo.features_async([f"{number}/{key}" for key in keys]) == [number] * len(keys)
            assert repo.cluster is not parents
            repo.close()
            told.put("fine")
        except BaseException as error:
            told.put(repr(error))
            raise

    with Load(repo) as load:  # its threads are in the midst of something when the process forks
        load.goes_on()
        children = [context.Process(target=child, args=(number,)) for number in (2, 3)]
        for each in children:
            each.start()
        for each in children:
            each.join(PATIENCE + SLACK)
        assert [each.exitcode for each in children] == [0, 0]
        assert [told.get() for _ in children] == ["fine", "fine"]
        load.goes_on()
    assert repo.cluster is parents
    for number in (2, 3):
        assert repo.matrix([f"{number}/{key}" for key in keys]) == [number] * len(keys)


# ── some rows of a write ─────────────────────────────────────────────────────────────────────────────────────────────


def test_of_a_write_that_fails_in_part_those_keys_are_named_whose_only_node_is_dead(
    ring: Ring, make_repo: Callable[..., Repo]
) -> None:
    repo = make_repo(keyspace=f"one_{uuid.uuid4().hex[:8]}", replication={"datacenter1": 1}).apply()
    keys = keys_of("partial", 200)
    repo.write(keys, 1)
    dead = [i for i, key in enumerate(keys) if repo.replicas(key) == ["127.0.0.3"]]
    written = [key for i, key in enumerate(keys) if i not in dead]
    assert dead
    assert written
    ring.kill(3)
    writes: list[Callable[[int], None]] = [
        lambda number: repo.write(keys, number),
        lambda number: asyncio.run(repo.write_async(keys, number)),
    ]
    for number, write in enumerate(writes, 2):
        with pytest.raises(WriteFailed, match=f"items: {len(dead)} of {len(keys)} rows were not written: ") as failed:
            write(number)
        assert list(failed.value.failures) == dead
        assert failed.value.keys == [{"item": keys[i]} for i in dead]
        assert f"item='{keys[dead[0]]}': " in str(failed.value)
        for read in (repo.matrix, repo.features, repo.features_async, repo.rows):
            assert read(written) == [number] * len(written)
    for read in (repo.matrix, repo.features, repo.features_async, repo.rows):
        with pytest.raises(StoreUnavailable):
            read(keys)  # what there is of it is no answer
