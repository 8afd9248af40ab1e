import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from embark.servers import free_port
from encoders.client import RETRY_AFTER, RetinaAway, RetinaBusy, RetinaClient, RetinaRefused
from encoders.matrix import pack
from encoders.replicas import Replicas
from encoders.retina_pb2 import EncodeReply, EncodeRequest, EncodersReply, EncodersRequest, Outcome
from encoders.retina_pb2_grpc import RetinaServicer, add_RetinaServicer_to_server
from tests.encoders.replica_process import TEXT

ROOT = Path(__file__).parent.parent.parent


class Planted(RetinaServicer):
    """Refuses its first calls with a code, or answers."""

    def __init__(
        self, code: grpc.StatusCode | None = None, retry_after_ms: int = 0, refusals: float = float("inf")
    ) -> None:
        self.code = code
        self.retry_after_ms = retry_after_ms
        self.refusals = refusals
        self.calls = 0

    def Encode(self, request: EncodeRequest, context: grpc.ServicerContext) -> EncodeReply:
        self.calls += 1
        if self.code is not None and self.calls <= self.refusals:
            context.set_trailing_metadata(((RETRY_AFTER, str(self.retry_after_ms)),))
            context.abort(self.code, "planted")
        outcomes = [Outcome() for _ in request.keys]
        return EncodeReply(vectors=pack(np.zeros((len(outcomes), 1), np.float32)), outcomes=outcomes)

    def Encoders(self, request: EncodersRequest, context: grpc.ServicerContext) -> EncodersReply:
        return EncodersReply()


@contextmanager
def serving(*planted: Planted) -> Iterator[str]:
    servers = []
    addresses = []
    for each in planted:
        server = grpc.server(ThreadPoolExecutor(2))
        add_RetinaServicer_to_server(each, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        servers.append(server)
    try:
        yield ",".join(addresses)
    finally:
        for server in servers:
            server.stop(None).wait()


def test_calls_go_to_all_of_them_in_turn() -> None:
    planted = Planted(), Planted()
    with serving(*planted) as addresses, RetinaClient(addresses) as client:
        for _ in range(6):
            client.encode("v", "", ["a"], 20)
    assert [each.calls for each in planted] == [3, 3]


def test_one_that_is_away_or_busy_costs_no_call() -> None:
    away, busy = Planted(grpc.StatusCode.UNAVAILABLE), Planted(grpc.StatusCode.RESOURCE_EXHAUSTED, 50)
    works = Planted()
    with serving(away, busy, works) as addresses, RetinaClient(f"127.0.0.1:1, {addresses}") as client:
        for _ in range(8):
            assert client.encode("v", "", ["a", "b"], 20).vectors.shape == (2, 1)
    assert works.calls == 8
    assert 1 <= away.calls < 8  # not asked again for a second, while another one answers


def test_where_all_are_busy_the_shortest_wait_is_told() -> None:
    busy = [Planted(grpc.StatusCode.RESOURCE_EXHAUSTED, ms) for ms in (900, 250)]
    with serving(*busy) as addresses, RetinaClient(addresses) as client:
        with pytest.raises(RetinaBusy, match="planted") as caught:
            client.encode("v", "", ["a"], 20)
        assert caught.value.retry_after == 0.25


def test_a_refusal_is_final_and_where_none_answers_that_is_said() -> None:
    refuses, works = Planted(grpc.StatusCode.NOT_FOUND), Planted()
    with serving(refuses, works) as addresses, RetinaClient(addresses) as client:
        with pytest.raises(RetinaRefused):
            client.encode("v", "", ["a"], 20)
        assert works.calls == 0
    with RetinaClient("127.0.0.1:1,127.0.0.1:2") as client, pytest.raises(RetinaAway, match="UNAVAILABLE"):
        client.encode("v", "", ["a"], 5)


def test_where_all_are_away_for_a_moment_only_the_call_waits() -> None:
    back = [Planted(grpc.StatusCode.UNAVAILABLE, refusals=2) for _ in range(2)]
    with serving(*back) as addresses, RetinaClient(addresses) as client:
        assert client.encode("v", "", ["a"], 60).vectors.shape == (1, 1)
    assert sorted(each.calls for each in back) == [2, 3]


def test_one_that_was_away_is_asked_last_and_in_its_turn_a_second_later() -> None:
    now = [0.0]
    replicas = Replicas("a:1,b:2", clock=lambda: now[0])
    first = next(replicas.in_turn())
    replicas.away(first)
    assert [next(replicas.in_turn()).address for _ in range(3)] == ["b:2"] * 3
    now[0] = 1.5
    assert sorted({next(replicas.in_turn()).address for _ in range(2)}) == ["a:1", "b:2"]
    replicas.close()
    with pytest.raises(ValueError, match="no list of addresses"):
        Replicas("a:1,,b:2")


def start(port: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.encoders.replica_process", str(port)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_until_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def end(process: "subprocess.Popen[str]") -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(60)


def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.chaos
def test_killing_one_of_two_retinas_under_load_is_seen_by_no_caller() -> None:
    ports = free_port(), free_port()
    processes = [start(port) for port in ports]
    stop = threading.Event()
    counts = [0, 0, 0, 0]
    errors: list[Exception] = []

    def call(caller: int, client: RetinaClient) -> None:
        while not stop.is_set():
            try:
                encoded = client.encode(TEXT.view, "", [f"{caller} {counts[caller]} {n}" for n in range(20)], 60)
                assert encoded.vectors.shape == (20, 8)
                counts[caller] += 1
            except Exception as error:  # noqa: BLE001 - any is one too many
                errors.append(error)
                return

    def more_calls() -> None:
        """All callers are answered several times more."""
        before = list(counts)
        eventually(lambda: bool(errors) or all(now >= then + 5 for now, then in zip(counts, before, strict=True)))
        assert not errors

    with RetinaClient(",".join(f"127.0.0.1:{port}" for port in ports)) as client:
        for process in processes:
            wait_until_ready(process)
        callers = [threading.Thread(target=call, args=(n, client)) for n in range(4)]
        try:
            for caller in callers:
                caller.start()
            more_calls()
            processes[0].kill()
            end(processes[0])
            more_calls()
            processes[0] = start(ports[0])
            wait_until_ready(processes[0])
            more_calls()
            # The other one drains and ends, and nobody notices that either: the restarted one gets the calls again.
            processes[1].terminate()
            assert end(processes[1]) == 0
            more_calls()
        finally:
            stop.set()
            for caller in callers:
                caller.join()
            for process in processes:
                process.kill()
                end(process)
    assert not errors
