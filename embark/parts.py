"""Puts KFC and Retina together from settings and registry, each a process of its own; EmbArk: see `embark.serve`."""

import asyncio
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry

from embark.metrics import metrics_served
from embark.repo import RepoError, open_store
from embark.settings import Settings
from embark.tracing import traces_of
from encoders.spec import EncoderSpec
from encoders.traces import Traces
from feature_repo.directory import EncoderDirectory
from feature_repo.views import encoder_specs

if TYPE_CHECKING:
    from encoders.encoder import Encoder
    from encoders.fetch import Fetcher

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


def fetcher_of(settings: Settings) -> "Fetcher":
    """What downloads images, as the settings allow it; to be called on the event loop that it is to belong to.

    Raises:
        ValueError: a root is no folder or prefix, a secret's host no host.
    """
    from encoders.fetch import Fetcher
    from encoders.sources import sources

    return Fetcher(
        allowed_networks=settings.fetch_networks,
        max_bytes=settings.fetch_max_bytes,
        seconds=settings.fetch_seconds,
        concurrency=settings.fetch_concurrency,
        per_host=settings.fetch_per_host,
        user_agent=settings.fetch_user_agent,
        sources=sources(
            settings.fetch_roots, data_urls=settings.fetch_data_urls, s3_endpoint=settings.fetch_s3_endpoint
        ),
        secrets=settings.fetch_secrets,
    )


def encoder_loader(settings: Settings) -> "Callable[[EncoderSpec], Encoder]":
    """Loads encoders on the device of the settings; those of teams' own modules too, where the settings allow them.

    Such modules are looked for where Python looks, and after that in the feature repo.
    """
    from encoders.compute import choose_device
    from encoders.loading import load_encoder

    folder = str(settings.repo.resolve())
    if settings.allowed_modules and folder not in sys.path:
        sys.path.append(folder)
    device = str(choose_device(settings.device))
    return partial(load_encoder, device=device, allowed_modules=tuple(settings.allowed_modules))


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
    from encoders.memory import share_one_heap
    from encoders.metrics import RetinaMetrics
    from encoders.server import RetinaServer
    from encoders.service import RetinaService

    async def run(
        directory: EncoderDirectory, registry: CollectorRegistry, stop: threading.Event, traces: Traces
    ) -> None:
        async with fetcher_of(settings) as fetcher:
            service = RetinaService(
                registered=lambda: directory.specs,
                fetcher=fetcher,
                device=settings.device,
                load=encoder_loader(settings),
                per_host=settings.fetch_per_host,
                max_keys_at_hand=settings.retina_keys_at_hand,
                max_batch=settings.retina_batch or None,
                max_age=None if settings.retina_batch_ms is None else settings.retina_batch_ms / 1000,
                memory=settings.retina_memory_mb * 1_000_000,
                compiled=settings.retina_compile,
                metrics=RetinaMetrics(registry),
                traces=traces,
            )
            async with RetinaServer(
                service,
                settings.retina_address,
                grace=settings.retina_grace_seconds,
                reflects=settings.retina_reflection,
                ready=not settings.retina_warm,
            ) as server:
                if not settings.retina_warm:
                    ready.set()
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
                            ready.set()
                            logger.info("Retina is ready")
                        else:
                            warm.cancel()
                    await stopped
                finally:
                    stop.set()  # else the thread that waits for it would hold up the end for ever
                logger.info("Retina finishes what it has at hand")

    share_one_heap()  # before there are threads
    registry = CollectorRegistry()
    ready = threading.Event()
    with (
        stopped_by_signals() as stop,
        directory_of(settings) as directory,
        metrics_served(settings.retina_metrics, registry, lambda: ready.is_set() and not stop.is_set()),
        traces_of(settings, "retina") as traces,
    ):
        uvloop.run(run(directory, registry, stop, traces))


def run_materializer(settings: Settings) -> None:
    """KFC, until a signal stops it."""
    from prometheus_client import CollectorRegistry

    from encoders.client import RetinaClient
    from materializer.metrics import WorkerMetrics
    from materializer.process import run_worker

    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    working = threading.Event()
    with (
        stopped_by_signals() as stop,
        directory_of(settings) as directory,
        traces_of(settings, "kfc") as traces,
        RetinaClient(settings.retina_address, traces=traces) as retina,
        metrics_served(settings.kfc_metrics, registry, lambda: working.is_set() and not stop.is_set()),
    ):
        store = open_store(settings.repo)
        run_worker(
            store, directory=directory, retina=retina, stop=stop, metrics=metrics, working=working, traces=traces
        )
