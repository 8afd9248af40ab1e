"""Feature services by name: the views that a model reads together."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

REFRESH_SECONDS = 2.0  # as of the directory of encoders


class UnknownService(LookupError):
    """No feature service is registered under that name; the message lists those that are."""


class Services:
    """The registered feature services, read again when asked for after a while. Safe to share between threads.

    Args:
        read: reads name → views past any cache; called by one thread at a time.
        refresh_seconds: for which a reading is good enough.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, Sequence[str]]] = dict,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._refresh_seconds = refresh_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Mapping[str, Sequence[str]] = {}
        self._read_at = float("-inf")

    @property
    def stale(self) -> bool:
        """Whether `views` would read the registry: not for an event loop."""
        return self._clock() >= self._read_at + self._refresh_seconds

    def views(self, service: str) -> Sequence[str]:
        """The views of a feature service.

        Raises:
            UnknownService: there is none of that name.
        """
        with self._lock:
            if self.stale:
                self._known = self._read()
                self._read_at = self._clock()
        if service not in self._known:
            raise UnknownService(
                f"unknown feature service {service!r}; known are: {', '.join(sorted(self._known)) or 'none'}"
            )
        return self._known[service]
