import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ConsistencyLevel, ExecutionProfile, Session
from cassandra.policies import RoundRobinPolicy
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from embark.servers import LocalServers, ServersError, check_port, free_port
from embark.servers.java import JarsError, class_path, read_manifest
from embark.servers.processes import ServerProcess

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
            noted = {"pid": foreign.pid, "created": psutil.Process(foreign.pid).create_time() - 3600}
            (process.folder / "pid.json").write_text(json.dumps(noted))
            assert process.process() is None
            assert not process.stop()
            assert foreign.poll() is None
        finally:
            foreign.kill()


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
            check_port("kafka-1", "127.0.0.1", port)


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


def test_a_jar_that_was_not_reviewed_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "jars.sha256"
    wrong = dict.fromkeys(read_manifest(), "0" * 64)
    manifest.write_text("".join(f"{digest}  {name}\n" for name, digest in wrong.items()))
    with pytest.raises(JarsError, match=r"is not the jar that was reviewed \(SHA-256 [0-9a-f]{64}, expected 0{64}\)"):
        class_path("org.slf4j:slf4j-simple:1.7.36", verified=tmp_path / "verified.json", manifest=manifest)
    assert not (tmp_path / "verified.json").exists()


def test_a_verified_jar_that_changes_is_verified_again(tmp_path: Path) -> None:
    verified, coordinates = tmp_path / "verified.json", "org.slf4j:slf4j-simple:1.7.36"
    jars = class_path(coordinates, verified=verified)
    copy = tmp_path / jars[0].name
    copy.write_bytes(jars[0].read_bytes() + b"tampered")
    known = json.loads(verified.read_text())
    known[coordinates][str(copy)] = known[coordinates].pop(str(jars[0]))
    verified.write_text(json.dumps(known))
    assert copy not in class_path(coordinates, verified=verified)


def test_a_failed_download_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(JarsError, match=r"the jars of org\.example:nothing:1\.0 cannot be downloaded") as error:
        class_path("org.example:nothing:1.0", verified=tmp_path / "verified.json", cache=tmp_path / "cache")
    assert "\n" not in str(error.value)


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
        with closing_cluster(cluster):
            session.execute("CREATE TABLE kept (k text PRIMARY KEY, v vector<float, 3>)")
            session.execute("INSERT INTO kept (k, v) VALUES ('a', [1, 2, 3])")
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
        assert sorted(servers.down()) == ["cassandra-1", "kafka-1"]
        assert not any(s.running for s in servers.status())
        servers.up()
        cluster, session = connected(servers)
        with closing_cluster(cluster):
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
def test_a_server_that_dies_at_start_takes_the_other_down_again(tmp_path: Path) -> None:
    servers = made(tmp_path)
    (tmp_path / "cassandra-1").mkdir()
    (tmp_path / "cassandra-1" / "data").write_text("no folder")
    with pytest.raises(ServersError, match=r"cassandra-1 died at start: .*\(log: .*cassandra-1/log\.txt\)"):
        servers.up()
    assert not any(s.running for s in servers.status())


@pytest.mark.cluster
def test_three_nodes_of_each_survive_the_loss_of_one(tmp_path: Path) -> None:
    servers = made(tmp_path, nodes=3)
    try:
        servers.up()
        assert len([s for s in servers.status() if s.ready]) == 6
        cluster, session = connected(servers, ConsistencyLevel.QUORUM)
        with closing_cluster(cluster):
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
    finally:
        servers.down()


class closing_cluster(closing):
    """`closing`, for a thing that shuts down."""

    def __exit__(self, *_: object) -> None:
        self.thing.shutdown()
