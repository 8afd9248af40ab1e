"""Keeps hot caches fresh by what is announced of keys: embedded, failed, or invalidated."""

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from materializer.messages import Announcement
from serving.hot_caches import HotCaches

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
BACK_OFF_SECONDS = 1.0


class Announcements(Protocol):
    """As `materializer.announcements`; used by one thread."""

    def poll(self, timeout: float) -> Sequence[Announcement]:
        """What was announced since the last poll, after at most about `timeout` seconds."""
        ...

    def close(self) -> None: ...


class Freshness:
    """Reads announcements into hot caches, in a thread of its own, while it is in its context.

    Args:
        open: opens the announcements; told what to call where some may have been missed.
        caches: told of them.
    """

    def __init__(self, open: Callable[[Callable[[], None]], Announcements], caches: HotCaches) -> None:
        self._announcements = open(self._missed)
        self._caches = caches
        self._stop = threading.Event()
        self.reading = threading.Event()
        """Set when announcements are read for the first time: what is cached from then on stays fresh."""
        self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def _missed(self) -> None:
        self._caches.distrust()
        self.reading.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for each in self._announcements.poll(POLL_SECONDS):
                    apply(each, self._caches)
            except Exception:
                logger.exception("announcements cannot be read: hot rows are read again when their time is over")
                self._caches.distrust()
                self._stop.wait(BACK_OFF_SECONDS)
        self._announcements.close()


def apply(announced: Announcement, caches: HotCaches) -> None:
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
