import socket
import subprocess
import threading

import pytest

from serving.processes import (
    BACK_OFF_SECONDS,
    END_SECONDS,
    FAILED_STARTS,
    LIVED_SECONDS,
    Processes,
    ProcessesFailed,
    reserved,
)
from serving.transport import TransportRefused
from tests.serving.fakes import Clock


class FakeChild:
    """A process that ends when it is told to, or asked and not `stubborn`."""

    def __init__(self, pid: int, *, stubborn: bool = False) -> None:
        self.pid = pid
        self.code: int | None = None
        self.stubborn = stubborn

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        if not self.stubborn:
            self.code = 0

    def kill(self) -> None:
        self.code = -9

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None:
            assert timeout is not None
            assert timeout <= END_SECONDS
            raise subprocess.TimeoutExpired("fake", timeout)
        return self.code


class Started:
    """Starts fake processes and keeps them."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.children: list[tuple[int, FakeChild]] = []
        self._stubborn = stubborn

    def __call__(self, index: int) -> FakeChild:
        child = FakeChild(1000 + len(self.children), stubborn=self._stubborn)
        self.children.append((index, child))
        return child


def test_a_process_that_dies_is_started_again() -> None:
    clock, started = Clock(), Started()
    processes = Processes(started, 3, clock=clock)
    processes.look()
    assert [index for index, _ in started.children] == [0, 1, 2]
    clock.now += LIVED_SECONDS
    started.children[1][1].code = -9
    processes.look()
    assert [index for index, _ in started.children] == [0, 1, 2, 1]
    assert processes.restarts == 1
    assert processes.pids == [1000, 1002, 1003]


def test_one_that_dies_at_once_is_started_after_a_while_and_not_for_ever() -> None:
    clock, started = Clock(), Started()
    processes = Processes(started, 1, clock=clock)
    for death in range(FAILED_STARTS):
        processes.look()
        assert len(started.children) == death + 1
        started.children[-1][1].code = 1
        if death < FAILED_STARTS - 1:
            processes.look()
            assert len(started.children) == death + 1
            clock.now += BACK_OFF_SECONDS
    with pytest.raises(ProcessesFailed):
        processes.look()


@pytest.mark.parametrize("stubborn", [False, True])
def test_all_are_ended_when_it_is_told_to_stop(stubborn: bool) -> None:
    started, stop = Started(stubborn=stubborn), threading.Event()
    stop.set()
    processes = Processes(started, 2)
    processes.look()
    processes.run(stop)
    assert [child.code for _, child in started.children] == [-9 if stubborn else 0] * 2
    assert processes.pids == []


def test_a_port_is_shared_by_those_who_say_so_and_by_nobody_else() -> None:
    with reserved("127.0.0.1:0") as address:
        port = int(address.rpartition(":")[2])
        with socket.socket() as one, socket.socket() as other:
            for each in (one, other):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                each.bind(("127.0.0.1", port))
                each.listen()
            with pytest.raises(TransportRefused, match=address), reserved(address):
                pass
        with socket.socket() as stranger, pytest.raises(OSError):  # noqa: PT011 - whatever the kernel says
            stranger.bind(("127.0.0.1", port))
