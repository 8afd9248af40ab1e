"""The registered encoders, kept fresh in a running server: `feast apply` and it serves."""

import logging
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self

from encoders.spec import EncoderSpec

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0  # a new encoder is to serve within 10 s of `feast apply`


class UnknownView(LookupError):
    """No encoder is registered under that name; the message lists those that are."""

    def __init__(self, view: str, known: Mapping[str, EncoderSpec]) -> None:
        super().__init__(f"unknown view {view!r}; known are: {', '.join(known) or 'none (run `feast apply`)'}")


class EncoderDirectory:
    """Registered encoders by view name, read again every `refresh_seconds` by a thread of its own.

    A registry that cannot be read (Feast rewrites its file in place, so half of it may be seen) leaves the last good
    reading in force.

    Args:
        read: reads the registry past any cache, `lambda: encoder_specs(store, allow_cache=False)`.
        refresh_seconds: time between two readings.
        on_change: called with the new mapping after each reading that differs from the one before.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, EncoderSpec]],
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        on_change: Callable[[Mapping[str, EncoderSpec]], None] | None = None,
    ) -> None:
        self._read = read
        self._refresh_seconds = refresh_seconds
        self._on_change = on_change
        self._specs: Mapping[str, EncoderSpec] = MappingProxyType(dict(read()))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh_until_stopped, name="encoder-directory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def specs(self) -> Mapping[str, EncoderSpec]:
        """The encoders by view name, as last read."""
        return self._specs

    def spec(self, view: str) -> EncoderSpec:
        """The encoder of a view.

        Raises:
            UnknownView: none is registered under that name.
        """
        specs = self._specs
        if view not in specs:
            raise UnknownView(view, specs)
        return specs[view]

    def refresh(self) -> None:
        """Reads the registry now; keeps the last good reading where that fails."""
        try:
            specs = MappingProxyType(dict(self._read()))
        except Exception:
            logger.warning("the registry could not be read; the encoders known before stay in force", exc_info=True)
            return
        if specs != self._specs:
            added, removed = sorted(set(specs) - set(self._specs)), sorted(set(self._specs) - set(specs))
            logger.info("encoders registered: %s; added %s, removed %s", list(specs), added, removed)
            self._specs = specs
            if self._on_change:
                self._on_change(specs)

    def _refresh_until_stopped(self) -> None:
        while not self._stop.wait(self._refresh_seconds):
            self.refresh()
