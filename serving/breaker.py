"""A circuit breaker: what does not answer is left alone for a while, and asked by one caller when the while is over."""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

FAILURES = 5  # in a row: one lost node of several is no outage
OPEN_SECONDS = 1.0  # so late, at most, a server that is back is found again


class Breaker:
    """Safe to share between threads.

    Args:
        what: for the log, as "the online store".
        failures: in a row that open it.
        open_seconds: for which nobody may ask; then one may, and the others when that one was answered.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        what: str,
        *,
        failures: int = FAILURES,
        open_seconds: float = OPEN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._most = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at: float | None = None

    @property
    def is_open(self) -> bool:
        return self._opened_at is not None

    def may_ask(self) -> bool:
        """Whether to ask now. Who may has to tell how it went."""
        with self._lock:
            if self._opened_at is None:
                return True
            if self._clock() < self._opened_at + self._open_seconds:
                return False
            self._opened_at = self._clock()  # this one probes; should it never come back, another does
            return True

    def answered(self) -> None:
        """It answered."""
        with self._lock:
            if self._opened_at is not None:
                logger.warning("%s answers again", self._what)
            self._failures = 0
            self._opened_at = None

    def failed(self, why: object) -> None:
        """It did not answer, or not in time."""
        with self._lock:
            self._failures += 1
            if self._opened_at is None and self._failures >= self._most:
                logger.warning("%s is left alone for %g s: %s", self._what, self._open_seconds, why)
                self._opened_at = self._clock()
