"""Puts KFC and Retina together from settings and registry, each a process of its own; EmbArk: see `embark.serve`."""

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


def run_retina(settings: Settings) -> None:
    """Retina, until a signal stops it."""
    from encoders.fetch import Fetcher
    from encoders.service import RetinaServer, RetinaService

    async def run(directory: EncoderDirectory, stop: threading.Event) -> None:
        async with Fetcher(allowed_networks=settings.fetch_networks) as fetcher:
            service = RetinaService(registered=lambda: directory.specs, fetcher=fetcher, device=settings.device)
            async with RetinaServer(service, settings.retina_address) as server:
                logger.info(
                    "Retina listens on port %d; encoders: %s", server.port, ", ".join(directory.specs) or "none"
                )
                await asyncio.to_thread(stop.wait)
                logger.info("Retina finishes what it has at hand")

    with stopped_by_signals() as stop, directory_of(settings) as directory:
        asyncio.run(run(directory, stop))


def run_materializer(settings: Settings) -> None:
    """KFC, until a signal stops it."""
    from encoders.client import RetinaClient
    from materializer.process import run_worker

    with (
        stopped_by_signals() as stop,
        directory_of(settings) as directory,
        RetinaClient(settings.retina_address) as retina,
    ):
        run_worker(open_store(settings.repo), directory=directory, retina=retina, stop=stop)
