"""A worker on the servers that the registry names: what `embark materialize` runs."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from feast import FeatureStore
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from encoders.traces import NO_TRACES, Traces
from feature_repo.directory import EncoderDirectory
from feature_repo.failures import CassandraFailureMarks
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.views import request_topic
from materializer.archive import FeastArchive
from materializer.assignor import PerTopicStickyAssignor
from materializer.backlog import Backlog
from materializer.clock import SystemClock
from materializer.consumer import ResumingConsumer
from materializer.dead_letter import DeadLetter, read_dead_letters
from materializer.embedding import Retina
from materializer.messages import MAX_DEAD_LETTER_BYTES, MAX_MESSAGE_BYTES, Topics, ensure_topics
from materializer.metrics import WorkerMetrics
from materializer.worker import Limits, Worker

logger = logging.getLogger(__name__)

BOOTSTRAP_MS = 10_000
# > the slowest way from one poll to the next: Retina 60 s, history and online 20 s, the broker's acknowledgement of
# failures 60 s and of the commit 30 s. Whatever takes longer fails, and waits with polls in between.
MAX_POLL_INTERVAL_MS = 300_000
# A worker that died is missed after so long; the client sends heartbeats on a thread of its own, so a slow batch is not
# taken for a death.
SESSION_TIMEOUT_MS = 15_000
HEARTBEAT_MS = 1000  # how late a worker hears of a rebalance, which waits for the last one to hear of it
CLOSE_SECONDS = 10.0  # everything sent has been waited for by then
DELIVERY_SECONDS = 45.0  # < the 60 s for which the worker waits for acknowledgements
REQUEST_TIMEOUT_MS = 20_000
RECONNECT_MS = 1_000  # between two looks for a broker that is away; 30 s by default: too late to see that it is back


class KafkaUnavailable(Exception):
    """Kafka does not answer; the message says where and what to do."""


def run_worker(
    store: FeatureStore,
    *,
    directory: EncoderDirectory,
    retina: Retina,
    stop: threading.Event,
    limits: Limits | None = None,
    metrics: WorkerMetrics | None = None,
    working: threading.Event | None = None,
    traces: Traces = NO_TRACES,
) -> None:
    """Works until `stop` is set, then finishes the batch at hand and leaves the group.

    Args:
        store: an applied feature store, used by no other thread: Feast's registry cache belongs to one.
        directory: the registered encoders, kept fresh by the caller.
        retina: embeds; a `RetinaClient`, or in-process.
        metrics: told what is done.
        working: set once all servers were reached, and it joins the group.
        traces: told what Retina is asked.

    Raises:
        KafkaUnavailable, StoreUnavailable: a server cannot be reached at the start; later ones are waited for.
        NothingApplied: nothing has been registered yet.
    """
    metrics = metrics or WorkerMetrics()
    servers, topics = topics_of(store)
    rows = FeastOnlineRows(store)
    marks = CassandraFailureMarks.of(store)
    create_topics(servers, topics)
    with kafka_reached(servers):
        producer = open_producer(servers)
    try:
        with kafka_reached(servers):
            consumer = open_consumer(servers, topics)
        worker = Worker(
            consumer=consumer,
            producer=producer,
            retina=retina,
            archive=FeastArchive(store, rows),
            marks=marks,
            directory=directory,
            topics=topics,
            limits=limits,
            metrics=metrics,
            traces=traces,
        )
        logger.info("taking requests from %s at %s", topics.live, servers)
        if working is not None:
            working.set()
        with Backlog(lambda: open_observer(servers, topics), topics, metrics, SystemClock()):
            worker.run(stop)
    finally:
        producer.close(timeout=CLOSE_SECONDS)


def create_topics(servers: str, topics: Topics) -> None:
    """Creates the topics that are missing, each message on as many brokers as there are, up to three.

    Raises:
        KafkaUnavailable: Kafka does not answer.
    """
    with topic_admin(servers) as admin:
        brokers = len(admin.describe_cluster()["brokers"])
        ensure_topics(admin, topics, replication=min(brokers, 3))


def open_consumer(servers: str, topics: Topics, *, session_timeout_ms: int = SESSION_TIMEOUT_MS) -> KafkaConsumer:
    """The consumer of a worker: it commits only what it is told to."""
    return ResumingConsumer(
        bootstrap_servers=servers.split(","),
        bootstrap_timeout_ms=BOOTSTRAP_MS,
        client_id=f"embark-materializer-{socket.gethostname()}",
        group_id=topics.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # a first worker begins with what was asked before it came
        # Named, since kafka-python's own choice takes all partitions from all workers at each change.
        partition_assignment_strategy=[PerTopicStickyAssignor],
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=HEARTBEAT_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        reconnect_backoff_max_ms=RECONNECT_MS,
        fetch_max_wait_ms=100,  # a lone request does not wait for company
        allow_auto_create_topics=False,
    )


def open_announcement_reader(servers: str) -> KafkaConsumer:
    """What `Announcements` reads with: each process reads all of the topic, and Kafka keeps no place for it.

    Raises:
        KafkaError: Kafka does not answer.
    """
    return KafkaConsumer(
        bootstrap_servers=servers.split(","),
        bootstrap_timeout_ms=BOOTSTRAP_MS,
        client_id=f"embark-announcements-{socket.gethostname()}",
        enable_auto_commit=False,
        auto_offset_reset="none",  # a place that is gone is an error, not one to be skipped silently
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        reconnect_backoff_max_ms=RECONNECT_MS,
        fetch_max_wait_ms=500,
        allow_auto_create_topics=False,
    )


def open_observer(servers: str, topics: Topics) -> KafkaConsumer:
    """A consumer that sees what the workers' group has committed, and takes no part in it."""
    return KafkaConsumer(
        bootstrap_servers=servers.split(","),
        bootstrap_timeout_ms=BOOTSTRAP_MS,
        client_id=f"embark-materializer-{socket.gethostname()}-backlog",
        group_id=topics.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        reconnect_backoff_max_ms=RECONNECT_MS,
        max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
        allow_auto_create_topics=False,
    )


def open_producer(servers: str, delivery_seconds: float = DELIVERY_SECONDS) -> KafkaProducer:
    """The producer of all but look-ups: acknowledged by all replicas, and sometimes there twice.

    Args:
        delivery_seconds: after which a message that Kafka has not taken is given up, with an error.
    """
    return KafkaProducer(
        bootstrap_servers=servers.split(","),
        bootstrap_timeout_ms=BOOTSTRAP_MS,
        client_id=f"embark-materializer-{socket.gethostname()}",
        acks="all",
        # One that is sends nothing any more after an outage in which what it had sent was given up (kafka-python
        # 3.0.12). Whoever reads these topics takes a message twice, since workers that die repeat theirs.
        enable_idempotence=False,
        linger_ms=5,
        delivery_timeout_ms=int(delivery_seconds * 1000),
        request_timeout_ms=min(REQUEST_TIMEOUT_MS, int(delivery_seconds * 1000 / 2)),
        reconnect_backoff_max_ms=RECONNECT_MS,
        max_block_ms=REQUEST_TIMEOUT_MS,
        max_request_size=MAX_DEAD_LETTER_BYTES,
        allow_auto_create_topics=False,
    )


def dead_letters(store: FeatureStore) -> list[DeadLetter]:
    """All dead letters of a feature store's requests, oldest first.

    Raises:
        KafkaUnavailable: Kafka does not answer.
    """
    servers, topics = topics_of(store)
    with topic_reader(servers) as consumer:
        return read_dead_letters(consumer, topics)


def topics_of(store: FeatureStore) -> tuple[str, Topics]:
    """Bootstrap servers and topics of a feature store's requests.

    Raises:
        NothingApplied: nothing has been registered in this project.
    """
    servers, live = request_topic(store)
    return servers, Topics(live=live)


@contextmanager
def topic_reader(servers: str) -> Iterator[KafkaConsumer]:
    """A consumer without a group, which leaves no trace.

    Raises:
        KafkaUnavailable: Kafka does not answer, then or within the block.
    """
    with (
        kafka_reached(servers),
        closing(
            KafkaConsumer(
                bootstrap_servers=servers.split(","),
                bootstrap_timeout_ms=BOOTSTRAP_MS,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
            )
        ) as consumer,
    ):
        yield consumer


@contextmanager
def topic_admin(servers: str) -> Iterator[KafkaAdminClient]:
    """An admin client.

    Raises:
        KafkaUnavailable: Kafka does not answer, then or within the block.
    """
    with (
        kafka_reached(servers),
        closing(KafkaAdminClient(bootstrap_servers=servers.split(","), bootstrap_timeout_ms=BOOTSTRAP_MS)) as admin,
    ):
        yield admin


@contextmanager
def kafka_reached(servers: str) -> Iterator[Any]:
    """Translates Kafka's errors where a person waits for an answer."""
    try:
        yield
    except KafkaError as error:
        raise KafkaUnavailable(f"Kafka does not answer at {servers}: start the servers with `embark up`") from error
