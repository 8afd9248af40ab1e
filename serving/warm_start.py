"""The hottest keys of the last run, read before anybody asks for them: a restart is no cold start."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from feature_repo.directory import UnknownView
from serving.archive import EmbeddingArchive
from serving.hot_caches import HotCaches

logger = logging.getLogger(__name__)

MOST_KEYS = 50_000  # of a view: 100 MB at 512 floats
KEYS_A_READ = 200
FRESH_SECONDS = 5.0  # without announcements, rows still have an end
SAVE_SECONDS = 60.0  # a process that is killed has lost no more than this
PAUSE_SECONDS = 0.02  # between two reads: look-ups come first


class WarmStart:
    """Reads the hot keys of the last run in a thread of its own, and keeps those of this one.

    Args:
        folder: a file for each view; a file that cannot be read costs nothing but warmth.
        archive: reads them.
        caches: whose keys are kept.
        keeps: whether this process keeps them; one of several does.
        fresh: waits, for up to so many seconds, until what is read stays fresh.
    """

    def __init__(
        self,
        folder: Path,
        archive: EmbeddingArchive,
        caches: HotCaches,
        *,
        keeps: bool = True,
        fresh: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._fresh = fresh
        self._folder = folder
        self._archive = archive
        self._caches = caches
        self._keeps = keeps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="warm-start", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)
        self.save()

    def warm(self) -> int:
        """Reads what the last run kept; how many keys are warm now."""
        warm = 0
        for file in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            try:
                keys = [key for key in json.loads(file.read_text()) if isinstance(key, str)]
                for first in range(0, len(keys), KEYS_A_READ):
                    if self._stop.wait(PAUSE_SECONDS):
                        return warm
                    warm += self._archive.warm(file.stem, keys[first : first + KEYS_A_READ])
            except UnknownView:
                logger.info("%s is not registered any more: its hot keys are left", file.stem)
            except (OSError, ValueError, TypeError) as error:
                logger.warning("%s cannot be read, its view begins cold: %s", file, error)
        return warm

    def save(self) -> None:
        """Keeps the hottest keys of each view that has any."""
        if not self._keeps:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for view, cache in self._caches.all.items():
                keys = cache.hottest(MOST_KEYS)
                if keys:
                    new = self._folder / f"{view}.json.new"
                    new.write_text(json.dumps(keys))
                    new.replace(self._folder / f"{view}.json")
        except OSError as error:
            logger.warning("the hot keys are not kept: %s", error)

    def _run(self) -> None:
        self._fresh(FRESH_SECONDS)
        warm = self.warm()
        if warm:
            logger.info("%d keys of the last run are warm", warm)
        while not self._stop.wait(SAVE_SECONDS):
            self.save()
