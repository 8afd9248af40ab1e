"""Readings that take their time (of Kafka, of history), kept fresh by a thread each, while somebody looks at them."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from embark.console import is_expected

T = TypeVar("T")

WATCHED_SECONDS = 30.0  # after which nobody looks any more: a console that is left open costs the servers nothing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown(Generic[T]):
    """What was read last.

    Attributes:
        value: None where nothing could be read yet.
        problem: why the last reading did not come; empty where it did. `value` is then of an earlier one.
        read_at: seconds since 1970 of `value`; 0 where there is none.
    """

    value: T | None = None
    problem: str = ""
    read_at: float = 0.0


class Kept(Generic[T]):
    """One reading, again and again. Safe to use from any thread.

    Args:
        name: for the thread and the log.
        read: answers the value; raises what it likes, which is then shown.
        every: seconds from the end of a reading to the next.
        clock: seconds since 1970.
    """

    def __init__(
        self, name: str, read: Callable[[], T], *, every: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._name = name
        self._read = read
        self._every = every
        self._clock = clock
        self._shown: Shown[T] = Shown()
        self._watched_at = float("-inf")
        self._done = threading.Condition()
        self._readings = 0  # that have ended
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join(2)  # a daemon: one that waits for Kafka holds nothing up

    def get(self, seconds: float = 0.0) -> Shown[T]:
        """What was read last, fresh enough; waits for so many seconds where nothing was read yet or it is old."""
        old = self._clock() - self._watched_at > WATCHED_SECONDS
        self._watched_at = self._clock()
        if old:
            self.again()
        with self._done:
            before = self._readings
            self._done.wait_for(lambda: self._readings > before or not (old or not self._readings), timeout=seconds)
        return self._shown

    def again(self) -> None:
        """Has it read at once: something was changed."""
        self._wake.set()

    def read_now(self) -> Shown[T]:
        """Reads in the caller's thread; an error is shown, not raised."""
        try:
            self._shown = Shown(value=self._read(), read_at=self._clock())
        except Exception as error:
            if not is_expected(error):
                logger.exception("%s could not be read", self._name)
            told = str(error).partition("\n")[0] or type(error).__name__
            self._shown = Shown(value=self._shown.value, problem=told, read_at=self._shown.read_at)
        with self._done:
            self._readings += 1
            self._done.notify_all()
        return self._shown

    def _run(self) -> None:
        while True:
            self._wake.wait(self._every)
            asked = self._wake.is_set()
            self._wake.clear()
            if self._stopped:
                return
            if asked or self._clock() - self._watched_at <= WATCHED_SECONDS:
                self.read_now()
