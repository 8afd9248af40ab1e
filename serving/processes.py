"""Several processes on one port: a parent that starts them, starts those again that die, and ends them in order."""

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from serving.transport import TransportRefused

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
LIVED_SECONDS = 10.0  # a process that died before is started again after a while only
BACK_OFF_SECONDS = 5.0
END_SECONDS = 25.0  # > the grace of a server and the last requests
FAILED_STARTS = 5  # in a row, of all processes: what is wrong will not pass by itself


class Child(Protocol):
    """What is needed of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class ProcessesFailed(Exception):
    """The processes die as soon as they are started; their own messages say why."""


class Processes:
    """A number of processes that are to run.

    Args:
        start: starts the one with an index, from 0 on.
        count: of processes.
        clock: seconds, of any origin.
    """

    def __init__(
        self, start: Callable[[int], Child], count: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._start = start
        self._count = count
        self._clock = clock
        self._children: dict[int, tuple[Child, float]] = {}
        self._not_before = dict.fromkeys(range(count), float("-inf"))
        self._failed_starts = 0
        self.restarts = 0

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [child.pid for child, _ in self._children.values()]

    def run(self, stop: threading.Event) -> None:
        """Keeps them running until `stop` is set, then ends them.

        Raises:
            ProcessesFailed: FAILED_STARTS in a row died within LIVED_SECONDS.
        """
        try:
            while not stop.is_set():
                self.look()
                stop.wait(LOOK_SECONDS)
        finally:
            self.end()

    def look(self) -> None:
        """Starts those that do not run.

        Raises:
            ProcessesFailed: see `run`.
        """
        now = self._clock()
        for index, (child, started_at) in list(self._children.items()):
            code = child.poll()
            if code is not None:
                del self._children[index]
                self.restarts += 1
                short = code != 0 and now < started_at + LIVED_SECONDS  # 0: somebody asked it to end
                self._failed_starts = self._failed_starts + 1 if short else 0
                self._not_before[index] = now + (BACK_OFF_SECONDS if short else 0.0)
                logger.warning("process %d (pid %d) ended with %d: it is started again", index, child.pid, code)
                if self._failed_starts >= FAILED_STARTS:
                    raise ProcessesFailed(f"{FAILED_STARTS} processes in a row ended within {LIVED_SECONDS:g} s")
        for index in range(self._count):
            if index not in self._children and now >= self._not_before[index]:
                self._children[index] = (self._start(index), now)

    def end(self) -> None:
        """Asks them to end, all together, then makes those that have not."""
        for child, _ in self._children.values():
            child.terminate()
        by = self._clock() + END_SECONDS
        for index, (child, _) in self._children.items():
            try:
                child.wait(max(0.0, by - self._clock()))
            except subprocess.TimeoutExpired:
                logger.warning("process %d (pid %d) does not end: it is killed", index, child.pid)
                child.kill()
                child.wait()
        self._children.clear()


@contextmanager
def reserved(address: str) -> Iterator[str]:
    """Holds a port that several processes are to share, and answers `host:port` with its number.

    The kernel gives a connection only to sockets that listen, which this one does not.

    Raises:
        TransportRefused: the address cannot be listened on, or another server does.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as alone:  # without SO_REUSEPORT: it fails where anybody listens
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, int(port)))
            number = alone.getsockname()[1]
        held = socket.socket(family)
    except OSError as error:
        raise TransportRefused(f"EmbArk cannot listen on {address}: {error.strerror}") from error
    with held:
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, number))
        except OSError as error:
            raise TransportRefused(f"EmbArk cannot listen on {address}: {error.strerror}") from error
        yield f"[{host}]:{number}" if family == socket.AF_INET6 else f"{host}:{number}"


def started(command: list[str], environment: dict[str, str], output: IO[bytes] | None = None) -> Child:
    """A child process in a session of its own: Ctrl-C reaches the parent alone, which ends it in order."""
    return subprocess.Popen(  # noqa: S603 - our own command
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, start_new_session=True
    )
