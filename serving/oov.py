"""Keeps the OOV embeddings of all views fresh in a running server: `embark oov set` and it answers them."""

import logging
import threading
from types import TracebackType
from typing import Self

from feature_repo.directory import EncoderDirectory
from feature_repo.online_rows import OnlineRows, served_oov
from feature_repo.session import StoreUnavailable
from serving.hot_caches import HotCaches

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0  # as of the directory of encoders; a read of one row a view


class OovRefresh:
    """Reads the OOV row of each registered view into the hot caches, again and again, while it is in its context.

    Not by announcements: one that is lost would leave a replica with another OOV embedding than the others until it
    is started anew. What cannot be read stays as it was, and each answer has the id of the vector in it.

    Args:
        directory: the registered encoders.
        rows: the online store.
        caches: told of what is read.
        refresh_seconds: time between two readings.
    """

    def __init__(
        self,
        directory: EncoderDirectory,
        rows: OnlineRows,
        caches: HotCaches,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._directory = directory
        self._rows = rows
        self._caches = caches
        self._refresh_seconds = refresh_seconds
        self._unread: set[str] = set()  # views that could not be read last time
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="oov", daemon=True)

    def __enter__(self) -> Self:
        self.refresh()  # before the first look-up is answered
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def refresh(self) -> None:
        """Reads all views now."""
        for view, spec in self._directory.specs.items():
            try:
                self._caches.answer_missing_with(view, served_oov(self._rows, spec))
                self._unread.discard(view)
            except StoreUnavailable as outage:
                if view not in self._unread:  # once an outage
                    logger.warning("the OOV embedding of %s stays as it was: %s", view, outage)
                self._unread.add(view)

    def _run(self) -> None:
        while not self._stop.wait(self._refresh_seconds):
            try:
                self.refresh()
            except Exception:
                logger.exception("OOV embeddings cannot be read; those known before stay in force")
