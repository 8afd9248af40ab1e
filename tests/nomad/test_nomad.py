"""The jobs of `deploy/nomad` under a real Nomad: scaling, balancing per call, a killed process, a rolling restart."""

import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from kafka import KafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families

from encoders.keys import canonical_key
from feature_repo.embeddings import Status
from materializer.messages import Topics
from serving.client import ClientError, EmbArkClient
from serving.embark_pb2 import LookupRequest
from serving.embark_pb2_grpc import EmbArkStub
from tests.nomad.agent import Service, until
from tests.nomad.conftest import BIN, JOBS, TEXT, Deployed

pytestmark = [pytest.mark.nomad, pytest.mark.timeout(1500)]  # the first one builds Nomad

KEYS = [f"title {i}" for i in range(20)]
CALLS = 300
TOLERANCE = 0.05  # of the calls that are a replica's share; Envoy goes round, so they differ by one or two


def statuses(deployed: Deployed) -> list[Status]:
    """Of KEYS; none where nobody answers."""
    with EmbArkClient(deployed.embark) as client:
        try:
            return [Status(each) for each in client.lookup(TEXT.view, KEYS, timeout=20).status]
        except ClientError:
            return []


def answered(replica: Service) -> float:
    """Look-ups that a replica has answered well."""
    with urllib.request.urlopen(f"{replica.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "embark_call_seconds_count"
        and sample.labels["method"] == "Lookup"
        and sample.labels["code"] == "OK"
    )


def balanced(deployed: Deployed) -> set[tuple[str, int]]:
    """Addresses of the EmbArks that Envoy sends calls to."""
    (envoy,) = deployed.agent.services("envoy-metrics")
    with urllib.request.urlopen(f"{envoy.url}/clusters", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    flags = [line.split("::") for line in lines if line.startswith("embark::") and "::health_flags::" in line]
    addresses = [where.rpartition(":") for _, where, _, health in flags if health == "healthy"]
    return {(host, int(port)) for host, _, port in addresses}


def follows(deployed: Deployed, count: int) -> None:
    """Waits until Envoy sends calls to the `count` registered EmbArks, and to nothing else."""

    def all_of_them() -> bool:
        registered = {(each.address, each.port) for each in deployed.agent.services("embark")}
        return len(registered) == count and balanced(deployed) == registered

    until(all_of_them, f"Envoy does not follow discovery: {count} EmbArks expected, {balanced(deployed)} are balanced")


@contextmanager
def load(deployed: Deployed) -> Iterator[Callable[[], int]]:
    """Two callers that never try again themselves, until the block ends. Yields a count of the calls answered.

    Fails where a call has failed, or was not answered with hits alone.
    """
    stop = threading.Event()
    failed: list[str] = []
    done: list[int] = []
    request = LookupRequest(view=TEXT.view, keys=[canonical_key(TEXT, key) for key in KEYS])

    def ask() -> None:
        with grpc.insecure_channel(deployed.embark, options=[("grpc.enable_retries", 0)]) as channel:
            stub = EmbArkStub(channel)
            while not stop.is_set():
                try:
                    answer = stub.Lookup(request, timeout=60)
                except grpc.RpcError as error:
                    failed.append(f"{time.strftime('%X')} {error.code()}: {error.details()}")  # type: ignore[attr-defined]
                else:
                    done.append(sum(status == Status.HIT for status in answer.status))
                time.sleep(0.01)  # two cores start processes beside this

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        until(lambda: len(done) > 20, "nothing is answered")
        yield lambda: len(done)
        seen = len(done)
        until(lambda: len(done) > seen + 20, "nothing is answered any more")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert failed == []
    assert set(done) == {len(KEYS)}


def test_what_is_missing_becomes_a_hit_through_all_of_it(deployed: Deployed) -> None:
    deployed.wait("envoy", 1)
    for job in ("embark", "retina", "kfc"):
        deployed.wait(job, 1)
    follows(deployed, 1)
    assert set(statuses(deployed)) <= {Status.OOV, Status.HIT, Status.UNAVAILABLE}
    until(lambda: set(statuses(deployed)) == {Status.HIT}, "look-ups stay OOV")


def test_embark_scales_and_calls_of_one_connection_are_spread_evenly(deployed: Deployed) -> None:
    deployed.agent.scale("kfc", 4)  # both start at a time
    deployed.agent.scale("embark", 3)
    deployed.wait("embark", 3)
    follows(deployed, 3)
    replicas = deployed.agent.services("embark-metrics")
    with EmbArkClient(deployed.embark) as client:  # one address: one connection
        assert (client.lookup(TEXT.view, KEYS, timeout=60).status == Status.HIT).all()
        before = {each: answered(each) for each in replicas}
        for _ in range(CALLS):
            client.lookup(TEXT.view, KEYS, timeout=60)
    shares = [answered(each) - before[each] for each in replicas]
    assert sum(shares) == CALLS
    assert all(abs(share - CALLS / 3) <= TOLERANCE * CALLS / 3 for share in shares), shares
    with load(deployed):
        deployed.agent.scale("embark", 2)
        deployed.wait("embark", 2)
        follows(deployed, 2)


def test_kfc_scales_and_shares_the_partitions(deployed: Deployed) -> None:
    deployed.wait("kfc", 4)
    group = Topics(live=f"{deployed.project}.requests").group
    admin = KafkaAdminClient(bootstrap_servers=deployed.kafka.split(","))
    try:

        def members() -> int:
            found = admin.describe_groups([group])[group]
            return len(found["members"]) if found["group_state"] == "Stable" else 0

        until(lambda: members() == 4, "four workers do not share one group")
    finally:
        admin.close()


def test_a_killed_process_comes_back(deployed: Deployed) -> None:
    killed, _ = deployed.agent.services("embark")
    pid = killed.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: (killed.address, killed.port) not in balanced(deployed), "Envoy does not see that it is gone")
    assert set(statuses(deployed)) == {Status.HIT}
    follows(deployed, 2)
    assert killed in deployed.agent.services("embark")
    assert killed.pid not in (None, pid)


def test_a_rolling_restart_under_load_fails_no_call(deployed: Deployed) -> None:
    deployed.wait("embark", 2)  # a deployment at hand would refuse another
    before = {each.allocation for each in deployed.agent.services("embark")}
    with load(deployed):
        deployed.agent.run(JOBS / "embark.nomad.hcl", **deployed.common, count=2, release=2)
        until(lambda: deployed.agent.settled("embark", 2), f"not settled:\n{deployed.agent.state('embark')}")
        follows(deployed, 2)
    assert not before & {each.allocation for each in deployed.agent.services("embark")}


def test_envoy_takes_the_configuration_of_compose() -> None:
    config = JOBS.parent / "envoy" / "envoy.yaml"
    done = subprocess.run(
        [BIN / "envoy", "--mode", "validate", "-c", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
