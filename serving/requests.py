"""Asking for embeddings: a bounded queue to Kafka that no look-up ever waits for."""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any, Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError

from encoders.traces import NO_TRACES, Headers, Traces
from materializer.messages import EmbedRequest
from materializer.process import kafka_reached
from serving.rates import TokenBucket

logger = logging.getLogger(__name__)

CAPACITY = 10_000  # requests that wait for Kafka: 80 MB of the longest keys
WINDOW_SECONDS = 60.0  # a key is asked for once in it; embedding takes seconds, so one that is lost is asked for soon
MAX_REMEMBERED = 200_000  # claims of 16 bytes, about 40 MB with what Python keeps around them
BACK_OFF_SECONDS = 1.0
DELIVERY_SECONDS = 30.0  # a restart of Kafka takes ten; what waits is bounded by CAPACITY and by Kafka's own buffer
PER_SECOND = 5_000.0  # of one process: what Kafka takes from Python without effort, ten times what a GPU embeds


class RequestSink(Protocol):
    """Takes requests for embeddings that are missing."""

    def offer(self, view: str, key: str, *, published_at: int | None = None, bulk: bool = False) -> bool:
        """Asks for the embedding of a canonical key. Never blocks and never raises.

        Args:
            published_at: microseconds since 1970, the event time of the embedding; now otherwise.
            bulk: behind what look-ups miss.

        Returns whether the request was taken; one that was not is asked for again by the next look-up.
        """
        ...


@dataclass(frozen=True, slots=True)
class MemoryRequests:
    """Requests in memory: for tests, and for readers that shall not ask."""

    requests: list[tuple[str, str]] = field(default_factory=list)
    times: list[int | None] = field(default_factory=list)  # of publishing, as given

    def offer(self, view: str, key: str, *, published_at: int | None = None, bulk: bool = False) -> bool:
        self.requests.append((view, key))
        self.times.append(published_at)
        return True


class RequestQueue:
    """Publishes requests from a thread of its own: Kafka's client may block for long, a look-up must not.

    A key is asked for once in a window, which starts when the broker has acknowledged the request; until then the
    request under way counts. One that failed is forgotten, so that the next look-up asks again.

    Args:
        producer: a `KafkaProducer` with `acks="all"`, used by that thread alone and closed with the queue.
        topic: of live requests.
        bulk_topic: of those that may wait.
        capacity: requests that may wait; what is more is dropped and counted.
        per_second: requests that are taken; what is more is dropped and counted, and asked for by later look-ups.
        window: seconds.
        clock: seconds since 1970: event time of a request, and age of a window.
        traces: whose open span goes along with a request, as a header.
    """

    def __init__(
        self,
        producer: Any,
        topic: str,
        *,
        bulk_topic: str | None = None,
        capacity: int = CAPACITY,
        per_second: float = PER_SECOND,
        window: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.time,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._traces = traces
        self._producer = producer
        self._topics = {"live": topic, "bulk": bulk_topic or topic}
        self._rate = TokenBucket(per_second, per_second, clock)
        self._window = window
        self._clock = clock
        self._waiting: Queue[tuple[EmbedRequest, Headers]] = Queue(capacity)
        self._lock = threading.Lock()
        self._asked: OrderedDict[bytes, float | None] = OrderedDict()  # claim → end of window; None: under way
        self._closing = threading.Event()
        self._close_by = 0.0  # monotonic seconds
        self._failing = False
        self.dropped = 0
        self.published = 0
        self._thread = threading.Thread(target=self._publish_until_closed, name="request-queue", daemon=True)
        self._thread.start()

    def offer(self, view: str, key: str, *, published_at: int | None = None, bulk: bool = False) -> bool:
        if self._closing.is_set():
            return False
        now = self._clock()
        claim = _claim(view, key)
        with self._lock:
            if claim in self._asked:
                until = self._asked[claim]
                if until is None or until > now:
                    return False
                del self._asked[claim]
            if not self._rate.take(1):
                self.dropped += 1
                return False
            request = EmbedRequest(
                view=view,
                key=key,
                requested_at=int(now * 1_000_000) if published_at is None else published_at,
                priority="bulk" if bulk else "live",
            )
            try:
                self._waiting.put_nowait((request, self._traces.headers()))
            except Full:
                self.dropped += 1
                return False
            self._asked[claim] = None
            while len(self._asked) > MAX_REMEMBERED:  # forgetting one costs at most a request too many
                self._asked.popitem(last=False)
        return True

    def close(self, timeout: float = 10.0) -> None:
        """Publishes what waits and closes the producer, for up to `timeout` seconds; what is left then is lost."""
        self._close_by = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout)

    def _publish_until_closed(self) -> None:
        while not (self._closing.is_set() and (self._waiting.empty() or time.monotonic() >= self._close_by)):
            try:
                request, headers = self._waiting.get(timeout=0.2)
            except Empty:
                continue
            self._publish(request, headers)
        try:
            self._producer.close(max(0.0, self._close_by - time.monotonic()))
        except KafkaError as error:
            logger.warning("the last requests may not have reached Kafka: %r", error)
        if not self._waiting.empty():
            logger.warning("%d requests were not published: later look-ups ask again", self._waiting.qsize())

    def _publish(self, request: EmbedRequest, headers: Headers) -> None:
        claim = _claim(request.view, request.key)
        try:
            sent = self._producer.send(
                self._topics[request.priority],
                key=request.partition_key,
                value=request.encode(),
                headers=[(name, value.encode()) for name, value in headers],
            )
        except Exception as error:  # noqa: BLE001 - a thread that died of one would ask for nothing ever again
            self._failed(claim, error)
            self._closing.wait(BACK_OFF_SECONDS)  # requests queue up meanwhile; a full queue drops
            return
        sent.add_callback(lambda _: self._acknowledged(claim))
        sent.add_errback(lambda error: self._failed(claim, error))

    def _acknowledged(self, claim: bytes) -> None:
        with self._lock:
            self.published += 1
            self._asked[claim] = self._clock() + self._window
            self._asked.move_to_end(claim)
        if self._failing:
            self._failing = False
            logger.warning("Kafka takes requests again")

    def _failed(self, claim: bytes, error: BaseException) -> None:
        with self._lock:
            self._asked.pop(claim, None)
        if not self._failing:  # once an outage, not once a request
            self._failing = True
            logger.warning("Kafka does not take requests (%r): misses stay OOV until it does", error)


def _claim(view: str, key: str) -> bytes:
    # A digest, since a key may have 8 KiB: the keys themselves would be 1.6 GB.
    return hashlib.blake2b(f"{view}\0{key}".encode(errors="surrogatepass"), digest_size=16).digest()


class ProducerOnDemand:
    """A producer that is opened by the first `send`, in the thread that sends.

    So whoever makes a queue waits for no Kafka and needs none: while it is away, requests fail and are asked for again.

    Args:
        open: opens it, `lambda: open_producer(servers)`.
    """

    def __init__(self, open: Callable[[], Any]) -> None:
        self._open = open
        self._producer: Any = None

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> Any:
        """As of `KafkaProducer`.

        Raises:
            KafkaUnavailable: Kafka does not answer; the next `send` tries to open it again.
            KafkaError: as of `KafkaProducer`.
        """
        if self._producer is None:
            self._producer = self._open()
        return self._producer.send(topic, key=key, value=value, headers=list(headers))

    def close(self, timeout: float) -> None:
        """As of `KafkaProducer`; nothing where it was never opened."""
        if self._producer is not None:
            self._producer.close(timeout)


def open_producer(servers: str, delivery_seconds: float = DELIVERY_SECONDS) -> KafkaProducer:
    """The producer of requests: small batches, acknowledged by all replicas.

    Args:
        delivery_seconds: after which a request that Kafka has not taken is given up; a later look-up asks again.

    Raises:
        KafkaUnavailable: Kafka does not answer.
    """
    with kafka_reached(servers):
        return KafkaProducer(
            bootstrap_servers=servers.split(","),
            bootstrap_timeout_ms=10_000,
            client_id="embark-serve",
            acks="all",
            # One that is waits for its new producer id for ever after an outage in which what it had sent was given up
            # (kafka-python 3.0.12), and publishes nothing any more. A request that is repeated does no harm.
            enable_idempotence=False,
            linger_ms=25,  # a message of its own takes 1.6 ms of CPU; an embedding takes longer than this
            compression_type="lz4",
            max_block_ms=2_000,
            delivery_timeout_ms=int(delivery_seconds * 1000),
            request_timeout_ms=int(delivery_seconds * 1000 / 3),
            reconnect_backoff_max_ms=1_000,  # 30 s by default: too late to see that Kafka is back
            allow_auto_create_topics=False,
        )
