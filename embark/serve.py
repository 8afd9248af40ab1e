"""EmbArk as a process, or as several on one port, put together from settings and registry."""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Sequence

import uvloop
from prometheus_client import CollectorRegistry

from embark.metrics import metrics_served
from embark.parts import directory_of, stopped_by_signals
from embark.repo import open_store
from embark.settings import Settings
from embark.tracing import traces_of
from encoders.memory import keep_freed_memory
from feature_repo.failures import CassandraFailureMarks
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.views import request_topic
from materializer.announcements import Announcements
from materializer.messages import Topics
from materializer.process import create_topics, open_announcement_reader
from serving.archive import EmbeddingArchive
from serving.callers import Anybody, Callers, TokenFile
from serving.collector import keep_what_started
from serving.freshness import Freshness
from serving.hot_caches import HotCaches
from serving.load import Gate
from serving.metrics import Metrics, PartsCollector
from serving.oov import OovRefresh
from serving.processes import Processes, reserved, started
from serving.requests import RequestQueue, open_producer
from serving.server import EmbArkServer
from serving.service import EmbArkService
from serving.services import Services
from serving.store_reads import StoreReads
from serving.transport import Tls, TransportRefused, check_private
from serving.warm_start import WarmStart

logger = logging.getLogger(__name__)

# For which a thread may keep the interpreter while others wait: Python's 5 ms, several times a call, is what hot
# look-ups waited for reads of the store, for Kafka's threads, and for Feast's registry.
SWITCH_SECONDS = 0.0005


def run_embark(settings: Settings, process: int | None = None) -> None:
    """EmbArk, until a signal stops it.

    Args:
        process: index of this one among several on a port; None: the only one, or the parent of several.

    Raises:
        TransportRefused, CallersInvalid: it would listen where or to whom it should not.
        StoreUnavailable, KafkaUnavailable, NothingApplied: a server cannot be reached at the start.
    """
    check_private(settings.embark_address, tls_of(settings), plaintext=settings.plaintext)
    if settings.processes > 1 and process is None:
        _run_several(settings)
    else:
        _run_one(settings, process)


def tls_of(settings: Settings) -> Tls | None:
    """Raises:
    TransportRefused: half of what TLS needs is set.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is not None and key is not None:
        return Tls(certificate, key, settings.tls_client_ca)
    if certificate is not None or key is not None or settings.tls_client_ca is not None:
        raise TransportRefused("TLS needs both EMBARK_TLS_CERTIFICATE and EMBARK_TLS_KEY")
    return None


def callers_of(settings: Settings) -> Callers:
    """Raises:
    CallersInvalid: the file cannot be used.
    """
    return TokenFile(settings.callers) if settings.callers is not None else Anybody()


def metrics_address(settings: Settings, process: int | None) -> str:
    """Where a process tells its metrics: each of several at a port of its own, from the one that is set."""
    if not settings.embark_metrics:
        return ""
    host, _, port = settings.embark_metrics.rpartition(":")
    return f"{host}:{int(port) + (process or 0)}"


def _run_several(settings: Settings) -> None:
    callers_of(settings)  # told once, before any process starts
    with stopped_by_signals() as stop, reserved(settings.embark_address) as address:
        environment = settings.model_copy(update={"embark_address": address}).as_environment()
        command = [sys.executable, "-P", "-m", "embark", "serve", "--process"]
        processes = Processes(lambda index: started([*command, str(index)], environment), settings.processes)
        logger.info("EmbArk runs %d processes on %s", settings.processes, address)
        processes.run(stop)


def _run_one(settings: Settings, process: int | None) -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_freed_memory()
    store = open_store(settings.repo)
    rows = FeastOnlineRows(store)
    marks = CassandraFailureMarks.of(store)
    servers, topic = request_topic(store)
    topics = Topics(live=topic)
    create_topics(servers, topics)
    registry = CollectorRegistry()
    caches = HotCaches(megabytes=settings.hot_cache_mb, seconds=settings.hot_cache_seconds)
    gate = Gate(settings.max_calls)
    listening = threading.Event()
    with (
        stopped_by_signals() as stop,
        directory_of(settings) as directory,
        traces_of(settings, "embark") as traces,
        contextlib.closing(StoreReads(rows, marks)) as reads,
        contextlib.closing(
            RequestQueue(
                open_producer(servers),
                topic,
                bulk_topic=topics.bulk,
                per_second=settings.requests_per_second,
                traces=traces,
            )
        ) as requests,
        metrics_served(metrics_address(settings, process), registry, lambda: listening.is_set() and not stop.is_set()),
    ):
        archive = EmbeddingArchive(directory, reads, requests, caches, budget=settings.lookup_budget_ms / 1000)
        registry.register(PartsCollector(caches, reads, requests, gate))
        service = EmbArkService(
            archive,
            callers=callers_of(settings),
            gate=gate,
            services=services_of(settings),
            metrics=Metrics(registry),
            traces=traces,
        )
        freshness = Freshness(
            lambda missed: Announcements(lambda: open_announcement_reader(servers), topics.embedded, missed=missed),
            caches,
        )
        hot_keys = settings.state.resolve() / "hot" / store.project
        warm_start = WarmStart(hot_keys, archive, caches, keeps=not process, fresh=freshness.reading.wait)
        with OovRefresh(directory, rows, caches), freshness, warm_start:
            keep_what_started()
            uvloop.run(_serve(settings, service, stop, listening, shared_port=process is not None))


async def _serve(
    settings: Settings, service: EmbArkService, stop: threading.Event, listening: threading.Event, *, shared_port: bool
) -> None:
    async with EmbArkServer(
        service,
        settings.embark_address,
        tls=tls_of(settings),
        shared_port=shared_port,
        reflected=settings.reflection,
        max_calls=settings.max_calls,
        drain_seconds=settings.drain_seconds,
    ) as server:
        listening.set()
        logger.info("EmbArk listens on port %d", server.port)
        await asyncio.to_thread(stop.wait)
        logger.info("EmbArk finishes what it has at hand")


def services_of(settings: Settings) -> Services:
    """The registered feature services, through a feature store of their own: its cache belongs to one thread."""
    store = open_store(settings.repo)

    def read() -> dict[str, Sequence[str]]:
        return {
            service.name: [projection.name for projection in service.feature_view_projections]
            for service in store.list_feature_services(allow_cache=False)
        }

    return Services(read)
