"""Puts the three parts together from settings and registry: EmbArk, KFC and Retina, each a process of its own."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from embark.repo import open_store
from embark.settings import Settings
from feature_repo.directory import EncoderDirectory
from feature_repo.views import encoder_specs

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set: each part then finishes what it has at hand."""
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def directory_of(settings: Settings) -> EncoderDirectory:
    """The registered encoders, kept fresh through a feature store of its own: its cache belongs to one thread."""
    store = open_store(settings.repo)
    return EncoderDirectory(lambda: encoder_specs(store, allow_cache=False))
