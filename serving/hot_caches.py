"""The hot caches of a process: one for each encoder."""

import threading
import time
from collections.abc import Callable

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OovEmbedding
from serving.hot_cache import HotCache


class HotCaches:
    """A cache for each encoder, made when it is first asked for.

    Args:
        megabytes: of each view.
        seconds: see `HotCache`.
        clock: see `HotCache`.
    """

    def __init__(self, *, megabytes: float, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._megabytes = megabytes
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._caches: dict[str, tuple[EncoderSpec, HotCache]] = {}
        self._oov: dict[str, OovEmbedding] = {}  # of each view whose owner has set one

    def of(self, spec: EncoderSpec) -> HotCache:
        """The cache of an encoder; a new one where the view is declared anew (other parameters of URLs to drop)."""
        found = self._caches.get(spec.view)
        if found is None or (found[0] is not spec and found[0] != spec):
            with self._lock:
                found = self._caches.get(spec.view)
                if found is None or found[0] != spec:
                    cache = HotCache(
                        spec,
                        megabytes=self._megabytes,
                        seconds=self._seconds,
                        clock=self._clock,
                        oov=self._oov.get(spec.view),
                    )
                    found = self._caches[spec.view] = (spec, cache)
        return found[1]

    def named(self, view: str) -> HotCache | None:
        """The cache of a view, where one was made."""
        found = self._caches.get(view)
        return found[1] if found else None

    def answer_missing_with(self, view: str, oov: OovEmbedding) -> None:
        """See `HotCache`; a cache that is made later begins with it."""
        with self._lock:
            known = self._oov.get(view)
            if known is None or oov.event_time > known.event_time:
                self._oov[view] = oov
            cache = self.named(view)
        if cache is not None:
            cache.answer_missing_with(oov)

    def distrust(self) -> None:
        """See `HotCache`."""
        for cache in self.all.values():
            cache.distrust()

    @property
    def all(self) -> dict[str, HotCache]:
        """Those that were made, by view."""
        return {view: cache for view, (_, cache) in list(self._caches.items())}
