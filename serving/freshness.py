"""Keeps hot caches fresh by what is announced of keys: embedded, failed, or invalidated."""

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

from serving.hot_cache import HotCaches

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
BACK_OFF_SECONDS = 1.0


class Announced(Protocol):
    """That something became of a key, as `materializer` announces it."""

    @property
    def kind(self) -> Literal["embedded", "failed", "invalidated"]: ...

    @property
    def view(self) -> str: ...

    @property
    def key(self) -> str:
        """Canonical."""
        ...

    @property
    def event_time(self) -> int:
        """Microseconds since 1970."""
        ...

    @property
    def embedding_id(self) -> int: ...


class Announcements(Protocol):
    """Where they come from; used by one thread."""

    def poll(self, timeout: float) -> Sequence[Announced]:
        """What was announced since the last poll; waits up to `timeout` seconds for something."""
        ...

    def close(self) -> None: ...


class Freshness:
    """Reads announcements into hot caches, in a thread of its own, while it is in its context.

    Caches do not depend on it: what was announced while Kafka was away is read again when its time is over.

    Args:
        open: opens the announcements, from now on; tried again until it can be.
        caches: told of them.
    """

    def __init__(self, open: Callable[[], Announcements], caches: HotCaches) -> None:
        self._open = open
        self._caches = caches
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                announcements = self._open()
                try:
                    self._follow(announcements)
                finally:
                    announcements.close()
            except Exception as error:  # noqa: BLE001 - whatever it is, caches are to be told again when it is over
                if not self._failing:  # once an outage
                    self._failing = True
                    logger.warning("announcements cannot be read: rows age until they can: %r", error)
                self._stop.wait(BACK_OFF_SECONDS)

    def _follow(self, announcements: Announcements) -> None:
        while not self._stop.is_set():
            told = announcements.poll(POLL_SECONDS)
            if self._failing:
                self._failing = False
                logger.warning("announcements are read again")
            for each in told:
                apply(each, self._caches)


def apply(announced: Announced, caches: HotCaches) -> None:
    """Tells the cache of the view, where there is one, what was announced."""
    cache = caches.named(announced.view)
    if cache is None:
        return
    if announced.kind == "embedded":
        cache.embedded(announced.key, announced.event_time, announced.embedding_id)
    elif announced.kind == "invalidated":
        cache.invalidated(announced.key, announced.event_time)
    else:
        cache.failed(announced.key)
