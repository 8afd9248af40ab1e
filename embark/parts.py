"""Puts the three parts together from settings and registry: EmbArk, KFC and Retina, each a process of its own."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry

from embark.metrics import metrics_served
from embark.repo import RepoError, open_store
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
    """Retina, until a signal stops it.

    Raises:
        RepoError: the address to listen on is a list.
        DeviceUnavailable: no such device here, or none that networks can be compiled for.
        SpecError, WeightsUnavailable: an encoder that is to be warm cannot be.
        OSError: an address cannot be listened on.
    """
    if "," in settings.retina_address:
        raise RepoError(f"Retina listens on one address, not on {settings.retina_address}: say which with --listen")
    from encoders.fetch import Fetcher
    from encoders.metrics import RetinaMetrics
    from encoders.server import RetinaServer
    from encoders.service import RetinaService

    async def run(directory: EncoderDirectory, registry: CollectorRegistry, stop: threading.Event) -> None:
        async with Fetcher(allowed_networks=settings.fetch_networks) as fetcher:
            service = RetinaService(
                registered=lambda: directory.specs,
                fetcher=fetcher,
                device=settings.device,
                max_keys_at_hand=settings.retina_keys_at_hand,
                max_batch=settings.retina_batch or None,
                max_age=settings.retina_batch_ms / 1000,
                memory=settings.retina_memory_mb * 1_000_000,
                compiled=settings.retina_compile,
                metrics=RetinaMetrics(registry),
            )
            async with RetinaServer(
                service,
                settings.retina_address,
                grace=settings.retina_grace_seconds,
                reflects=settings.retina_reflection,
                ready=not settings.retina_warm,
            ) as server:
                logger.info(
                    "Retina listens on port %d; encoders: %s", server.port, ", ".join(directory.specs) or "none"
                )
                stopped = asyncio.create_task(asyncio.to_thread(stop.wait))
                try:
                    if settings.retina_warm:
                        warm = asyncio.create_task(service.warm(settings.retina_warm))
                        await asyncio.wait((warm, stopped), return_when=asyncio.FIRST_COMPLETED)
                        if warm.done():
                            warm.result()
                            await server.set_ready()
                            logger.info("Retina is ready")
                        else:
                            warm.cancel()
                    await stopped
                finally:
                    stop.set()  # else the thread that waits for it would hold up the end for ever
                logger.info("Retina finishes what it has at hand")

    registry = CollectorRegistry()
    with (
        stopped_by_signals() as stop,
        directory_of(settings) as directory,
        metrics_served(settings.retina_metrics, registry),
    ):
        asyncio.run(run(directory, registry, stop))


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


def run_embark(settings: Settings) -> None:
    """EmbArk, until a signal stops it."""
    from feature_repo.failures import CassandraFailureMarks
    from feature_repo.online_rows import FeastOnlineRows
    from feature_repo.session import connect
    from feature_repo.views import request_topic
    from materializer.messages import Topics
    from materializer.process import create_topics
    from serving.archive import EmbeddingArchive
    from serving.requests import RequestQueue, open_producer
    from serving.service import EmbArkServer, EmbArkService

    async def run(archive: EmbeddingArchive, stop: threading.Event) -> None:
        async with EmbArkServer(EmbArkService(archive), settings.embark_address) as server:
            logger.info("EmbArk listens on port %d", server.port)
            await asyncio.to_thread(stop.wait)
            logger.info("EmbArk finishes what it has at hand")

    store = open_store(settings.repo)
    rows = FeastOnlineRows(store)
    marks = CassandraFailureMarks(connect(store), store.config.online_store.keyspace, store.project)
    servers, topic = request_topic(store)
    create_topics(servers, Topics(live=topic))
    with (
        stopped_by_signals() as stop,
        directory_of(settings) as directory,
        contextlib.closing(RequestQueue(open_producer(servers), topic)) as requests,
    ):
        asyncio.run(run(EmbeddingArchive(directory, rows, marks, requests), stop))
