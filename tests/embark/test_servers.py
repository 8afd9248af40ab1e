import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ConsistencyLevel, ExecutionProfile, Session
from cassandra.policies import RoundRobinPolicy
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from embark.servers import LocalServers, ServersError, free_port, java
from embark.servers.java import JarsError, class_paths, jar_count, read_manifest, sha256
from embark.servers.ports import check_port
from embark.servers.processes import ServerProcess, created

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def made(state: Path, **changes: object) -> LocalServers:
    return LocalServers(**{"state": state, "kafka_port": free_port(), "cassandra_port": free_port()} | changes)


def connected(servers: LocalServers, level: int = ConsistencyLevel.ONE) -> tuple[Cluster, Session]:
    profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), consistency_level=level, request_timeout=20)
    cluster = Cluster(
        servers.cassandra_hosts,
        port=servers.cassandra_port,
        protocol_version=5,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
    )
    return cluster, cluster.connect(servers.keyspace)


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def process(tmp_path: Path) -> ServerProcess:
    return ServerProcess(name="sleeper", folder=tmp_path / "sleeper")


def test_a_started_process_is_found_and_ended(process: ServerProcess) -> None:
    process.start(SLEEP)
    started = process.process()
    assert started is not None
    assert process.stop()
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE
    assert process.process() is None
    assert not process.stop()


def test_somebody_elses_process_with_a_recycled_id_is_never_ended(process: ServerProcess) -> None:
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL) as foreign:
        try:
            process.folder.mkdir()
            noted = {"pid": foreign.pid} | {by: at - 3600 for by, at in created(psutil.Process(foreign.pid)).items()}
            (process.folder / "pid.json").write_text(json.dumps(noted))
            assert process.process() is None
            assert not process.stop()
            assert foreign.poll() is None
        finally:
            foreign.kill()


@pytest.mark.parametrize("moved", ["by_clock", "since_boot"])
def test_a_started_process_stays_known_when_the_clock_is_set(process: ServerProcess, moved: str) -> None:
    process.start(SLEEP)
    try:
        file = process.folder / "pid.json"
        noted = json.loads(file.read_text())
        file.write_text(json.dumps(noted | {moved: noted[moved] + 1}))
        assert process.process() is not None
    finally:
        assert process.stop()


def test_a_process_that_dies_at_start_is_told_with_its_last_words_and_its_log(process: ServerProcess) -> None:
    process.start([sys.executable, "-c", "print('ERROR the disk is full'); print('bye')"])
    with pytest.raises(ServersError, match=r"sleeper died at start: ERROR the disk is full \(log: .*log\.txt\)"):
        process.wait_until(lambda: False, 20)


def test_a_process_that_never_answers_is_told_with_its_log(process: ServerProcess) -> None:
    process.start(SLEEP)
    try:
        with pytest.raises(ServersError, match=r"does not answer after 0 s \(log: "):
            process.wait_until(lambda: False, 0.2)
    finally:
        process.stop()


# ── what is checked before anything is started ───────────────────────────────────────────────────────────────────────


def test_a_busy_port_is_named_with_its_owner() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServersError, match=rf"kafka-1 cannot listen on 127\.0\.0\.1:{port}.*process {os.getpid()}"):
            check_port("kafka-1", "127.0.0.1", port, "")


def test_a_free_port_is_none_that_an_outgoing_connection_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(free_port()) as taken, listening(free_port()) as other:
        ports = [each.getsockname()[1] for each in (taken, other)]
        assert all(10_000 <= port < 20_000 for port in ports)
        other.close()
        monkeypatch.setattr("embark.servers.ports.CHOSEN_FROM", ports)
        assert {free_port() for _ in range(20)} == {ports[1]}
        monkeypatch.setattr("embark.servers.ports.CHOSEN_FROM", ports[:1])
        with pytest.raises(ServersError, match=r"no port of .* is free"):
            free_port()


def test_up_on_a_busy_port_starts_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        servers = made(tmp_path, cassandra_port=taken.getsockname()[1])
        with pytest.raises(ServersError, match="cassandra-1 cannot listen"):
            servers.up()
    assert not any(status.running for status in servers.status())


def test_too_little_memory_is_told_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(ServersError, match=r"2 servers need \d+ MB of memory, 100 MB are available"):
        made(tmp_path).up(available_mb=100)


def test_before_the_first_up_there_is_nothing_to_show_or_stop(tmp_path: Path) -> None:
    servers = made(tmp_path)
    assert servers.status() == []
    assert servers.down() == []


def test_a_start_that_is_refused_binds_to_no_number_of_nodes(tmp_path: Path) -> None:
    with pytest.raises(ServersError, match="6 servers need"):
        made(tmp_path, nodes=3).up(available_mb=100)
    with pytest.raises(ServersError, match="2 servers need"):
        made(tmp_path, nodes=1).up(available_mb=100)


# ── jars ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Repository:
    """A Maven repository of three jars, on this machine, whose jars can be spoilt."""

    folder: Path
    jars: dict[str, bytes] = field(default_factory=lambda: {f"part-{n}-1.0.jar": b"%d" % n * 90_000 for n in range(3)})
    cut_short: set[str] = field(default_factory=set)
    fails_once: set[str] = field(default_factory=set)
    url: str = ""

    @property
    def manifest(self) -> Path:
        file = self.folder / "jars.sha256"
        if not file.exists():
            lines = []
            for name, content in self.jars.items():
                reviewed = self.folder / name
                reviewed.write_bytes(content)
                lines.append(f"{sha256(reviewed)}  org.example:{name.removesuffix('-1.0.jar')}:1.0  {name}\n")
            file.write_text("[whole]\n" + "".join(lines))
        return file

    def class_path(self, **changes: object) -> list[Path]:
        arguments = {"repositories": {"here": self.url}, "local": self.local, "manifest": self.manifest}
        (found,) = class_paths("whole", **{"verified": self.folder / "verified.json", **arguments, **changes})
        return found

    @property
    def local(self) -> Path:
        return self.folder / "local"

    def left_over(self) -> list[str]:
        return [path.name for path in self.local.rglob(".*")]


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    there = Repository(folder=tmp_path)

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            content = there.jars.get(name)
            if content is None or name in there.fails_once:
                there.fails_once.discard(name)
                self.send_error(404 if content is None else 503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if name in there.cut_short else content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    there.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield there
    server.shutdown()
    server.server_close()
    thread.join()


def test_all_jars_are_fetched_and_told_of(repository: Repository) -> None:
    told: list[str] = []
    found = repository.class_path(arrived=told.append)
    assert [(path.name, path.read_bytes()) for path in found] == list(repository.jars.items())
    assert told == list(repository.jars)
    assert repository.left_over() == []


def test_an_interrupted_download_goes_on_where_it_was(repository: Repository) -> None:
    told: list[str] = []

    def interrupt(name: str) -> None:
        told.append(name)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repository.class_path(arrived=interrupt)
    assert not (repository.folder / "verified.json").exists()
    assert repository.left_over() == []
    assert [path.read_bytes() for path in repository.class_path()] == list(repository.jars.values())


def test_half_a_jar_is_never_left_in_its_place(repository: Repository) -> None:
    repository.cut_short.add("part-1-1.0.jar")
    with pytest.raises(JarsError, match=r"org\.example:part-1:1\.0 cannot be downloaded: "):
        repository.class_path()
    assert not list(repository.local.rglob("part-1*.jar"))
    repository.cut_short.clear()
    assert [path.read_bytes() for path in repository.class_path()] == list(repository.jars.values())


def test_a_download_that_fails_in_passing_is_tried_again(repository: Repository) -> None:
    repository.fails_once |= set(repository.jars)
    assert len(repository.class_path()) == 3


def test_a_jar_that_was_not_reviewed_is_refused_and_not_kept(repository: Repository) -> None:
    assert repository.manifest.exists()
    repository.jars["part-1-1.0.jar"] += b"tampered"
    with pytest.raises(
        JarsError, match=r"part-1:1\.0 as downloaded is not the jar that was reviewed \(SHA-256 [0-9a-f]"
    ):
        repository.class_path()
    assert not list(repository.local.rglob("part-1*.jar"))


def test_a_verified_jar_that_changes_is_verified_again(repository: Repository) -> None:
    changed = repository.class_path()[1]
    changed.write_bytes(changed.read_bytes()[:-8] + b"tampered")
    with pytest.raises(JarsError, match=rf"{re.escape(str(changed))} is not the jar that was reviewed.*: remove it"):
        repository.class_path()
    changed.unlink()
    assert repository.class_path()[1].read_bytes() == repository.jars["part-1-1.0.jar"]


def test_another_review_counts_at_once(repository: Repository) -> None:
    repository.class_path()
    digest = read_manifest(repository.manifest)["whole"][2].sha256
    repository.manifest.write_text(repository.manifest.read_text().replace(digest, "0" * 64))
    with pytest.raises(JarsError, match=r"part-2-1\.0\.jar is not the jar that was reviewed .*expected 0{64}"):
        repository.class_path()


@pytest.mark.parametrize("repositories", [{"none": "http://127.0.0.1:{port}"}, {"here": "{here}/elsewhere"}])
def test_a_failed_download_is_one_line(repository: Repository, repositories: dict[str, str]) -> None:
    asked = {name: url.format(port=free_port(), here=repository.url) for name, url in repositories.items()}
    manifest = repository.folder / "other.sha256"
    manifest.write_text(f"[whole]\n{'0' * 64}  org.example:nothing:1.0  nothing-1.0.jar\n")
    with pytest.raises(JarsError, match=r"org\.example:nothing:1\.0 cannot be downloaded: ") as error:
        repository.class_path(repositories=asked, manifest=manifest)
    assert "\n" not in str(error.value)


def test_the_manifest_holds_the_jars_of_both_servers() -> None:
    reviewed = read_manifest()
    assert list(reviewed) == [java.KAFKA, java.CASSANDRA]
    assert jar_count() == len({jar.name for jars in reviewed.values() for jar in jars})
    for root, version, main in (
        (java.KAFKA, java.KAFKA_VERSION, "kafka_2.13"),
        (java.CASSANDRA, java.CASSANDRA_VERSION, "cassandra-all"),
    ):
        assert f":{main}:{version}" in root
        assert f"{main}-{version}.jar" in [jar.name for jar in reviewed[root]]


def test_coordinates_that_were_not_reviewed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JarsError, match=r"has no jars of org\.example:new:2\.0: write it anew"):
        class_paths("org.example:new:2.0", verified=tmp_path / "verified.json")


# ── the real servers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.servers
def test_data_survives_down_and_up_twice_is_harmless(tmp_path: Path) -> None:
    servers = made(tmp_path)
    try:
        servers.up()
        first = servers.status()
        assert [(s.name, s.version, s.ready) for s in first] == [
            ("kafka-1", "4.1.0", True),
            ("cassandra-1", "5.0.5", True),
        ]
        cluster, session = connected(servers)
        with cluster:
            session.execute("CREATE TABLE kept (k text PRIMARY KEY, v vector<float, 3>)")
            session.execute("CREATE INDEX ON kept (v) USING 'sai' WITH OPTIONS = {'similarity_function': 'cosine'}")
            session.execute("INSERT INTO kept (k, v) VALUES ('a', [1, 2, 3])")
            session.execute("INSERT INTO kept (k, v) VALUES ('b', [-1, 0, 1])")
            nearest = session.execute("SELECT k FROM kept ORDER BY v ANN OF [1, 2, 2.5] LIMIT 1").one()
            assert nearest.k == "a"
        with closing(KafkaAdminClient(bootstrap_servers=servers.kafka_bootstrap)) as admin:
            admin.create_topics({"kept": {"num_partitions": 1, "replication_factor": 1}})
        with closing(KafkaProducer(bootstrap_servers=servers.kafka_bootstrap, acks="all")) as producer:
            producer.send("kept", b"message").get(20)
        # up while up, from two threads at once: the same processes
        threads = [threading.Thread(target=servers.up) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [s.pid for s in servers.status()] == [s.pid for s in first]
        with pytest.raises(ServersError, match="embark down"):
            made(tmp_path).up()
        # whatever they listen on, it is this machine's own
        for status in first:
            connections = psutil.Process(status.pid).net_connections("inet")
            addresses = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
            assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
            assert addresses
        assert sorted(servers.down()) == ["cassandra-1", "kafka-1"]
        assert not any(s.running for s in servers.status())
        # meanwhile another program takes the ports that they speak to each other on
        layout = json.loads((tmp_path / "layout.json").read_text())
        with listening(layout["controller_port"]), listening(layout["storage_port"]):
            servers.up()
        cluster, session = connected(servers)
        with cluster:
            assert list(session.execute("SELECT v FROM kept WHERE k = 'a'").one().v) == [1, 2, 3]
        with closing(KafkaConsumer(bootstrap_servers=servers.kafka_bootstrap)) as consumer:
            partition = TopicPartition("kept", 0)
            consumer.assign([partition])
            consumer.seek(partition, 0)
            assert next(iter(consumer)).value == b"message"
        with pytest.raises(ServersError, match="holds the data of 1 node"):
            made(tmp_path, nodes=3).up()
    finally:
        servers.down()


@pytest.mark.servers
@pytest.mark.parametrize(("name", "said"), [("cassandra-1", "died at start"), ("kafka-1", "cannot format its data")])
def test_a_server_that_dies_at_start_takes_the_other_down_again(tmp_path: Path, name: str, said: str) -> None:
    servers = made(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "data").write_text("no folder")
    with pytest.raises(ServersError, match=rf"{name} {said}: .+ \(log: .*{name}/log\.txt\)") as error:
        servers.up()
    assert "\n" not in str(error.value)
    assert not any(s.running for s in servers.status())


@pytest.mark.servers
def test_a_broker_that_dies_at_start_says_why(tmp_path: Path) -> None:
    servers = made(tmp_path)
    data = tmp_path / "kafka-1" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\ncluster.id=another\nnode.id=7\n")
    with pytest.raises(ServersError, match=r"kafka-1 died at start: .*Stored node id 7 .* \(log: .*kafka-1/log\.txt\)"):
        servers.up()
    assert not any(s.running for s in servers.status())


@pytest.mark.cluster
def test_three_nodes_of_each_survive_the_loss_of_one(tmp_path: Path) -> None:
    servers = made(tmp_path, nodes=3)
    try:
        servers.up()
        assert len([s for s in servers.status() if s.ready]) == 6
        cluster, session = connected(servers, ConsistencyLevel.QUORUM)
        with cluster:
            session.execute("CREATE TABLE kept (k int PRIMARY KEY, v int)")
            for i in range(50):
                session.execute("INSERT INTO kept (k, v) VALUES (%s, %s)", (i, i))
            lost = servers.process("cassandra-2").process()
            assert lost is not None
            lost.kill()
            lost.wait(30)
            assert [session.execute("SELECT v FROM kept WHERE k = %s", (i,)).one().v for i in range(50)] == [*range(50)]
        assert [s.name for s in servers.status() if not s.ready] == ["cassandra-2"]
        servers.up()  # starts what is missing
        assert all(s.ready for s in servers.status())
        cluster, session = connected(servers, ConsistencyLevel.ALL)  # every node counts every other as up
        with cluster:
            assert [session.execute("SELECT v FROM kept WHERE k = %s", (i,)).one().v for i in range(50)] == [*range(50)]
    finally:
        servers.down()


def listening(port: int) -> socket.socket:
    """A socket that keeps others from a port, until it is closed."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", port))
    taken.listen()
    return taken
