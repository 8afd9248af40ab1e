"""Parts of the look-up path in memory, and a server around them."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from kafka.errors import KafkaError, KafkaTimeoutError

from encoders.spec import EncoderSpec
from encoders.traces import NO_TRACES, Traces
from feature_repo.embeddings import embedding_id
from feature_repo.failures import MemoryFailureMarks
from serving.archive import Archive, EmbeddingArchive
from serving.callers import Callers
from serving.load import MAX_CALLS, Gate
from serving.memory import MemoryRows, memory_archive
from serving.metrics import Metrics
from serving.requests import MemoryRequests
from serving.server import EmbArkServer
from serving.service import EmbArkService
from serving.services import Services
from serving.transport import Tls

TEXT = EncoderSpec(name="tiny", version="v1", modality="text", dim=4, network="text_lstm", pinned="seeded:0")
IMAGE = EncoderSpec(
    name="photo", version="v1", modality="image", dim=3, network="torchvision:resnet18", pinned="ResNet18_Weights.X#1"
)
SPECS = {spec.view: spec for spec in (IMAGE, TEXT)}


class Clock:
    """A clock that the test turns."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class Parts:
    """An archive and what it is made of."""

    rows: MemoryRows = field(default_factory=MemoryRows)
    marks: MemoryFailureMarks = field(default_factory=lambda: MemoryFailureMarks({}))
    requests: MemoryRequests = field(default_factory=MemoryRequests)

    @property
    def archive(self) -> EmbeddingArchive:
        return memory_archive(SPECS, self.rows, self.marks, self.requests)

    def add(self, spec: EncoderSpec, key: str, value: float, event_time: int = 7) -> int:
        """Archives a vector of `value`s; its id."""
        vector = np.full(spec.dim, value, dtype=np.float32)
        identity = embedding_id(spec.view, key, event_time, vector)
        self.rows.rows[spec.view, key] = (event_time, identity, vector)
        return identity


@contextmanager
def served(
    archive: Archive,
    max_keys: int = 2000,
    *,
    callers: Callers | None = None,
    services: Services | None = None,
    metrics: Metrics | None = None,
    gate: Gate | None = None,
    tls: Tls | None = None,
    reflected: bool = True,
    traces: Traces = NO_TRACES,
    max_calls: int = MAX_CALLS,
) -> Iterator[str]:
    """The address of a running EmbArk."""
    ready, stop = threading.Event(), threading.Event()
    address: list[str] = []

    async def run() -> None:
        service = EmbArkService(
            archive,
            max_keys=max_keys,
            callers=callers,
            services=services,
            metrics=metrics,
            gate=gate,
            traces=traces,
        )
        async with EmbArkServer(service, "127.0.0.1:0", tls=tls, reflected=reflected, max_calls=max_calls) as server:
            address.append(f"127.0.0.1:{server.port}")
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield address[0]
    finally:
        stop.set()
        thread.join()


@dataclass
class FakeSent:
    """What a producer's `send` returns: settled by the test."""

    value: bytes
    headers: list[tuple[str, bytes]]
    callbacks: list[Callable[[object], object]] = field(default_factory=list)
    errbacks: list[Callable[[BaseException], object]] = field(default_factory=list)

    def add_callback(self, call: Callable[[object], object]) -> None:
        self.callbacks.append(call)

    def add_errback(self, call: Callable[[BaseException], object]) -> None:
        self.errbacks.append(call)

    def acknowledge(self) -> None:
        for call in self.callbacks:
            call(None)

    def fail(self) -> None:
        for call in self.errbacks:
            call(KafkaTimeoutError("planted"))


class FakeProducer:
    """A Kafka producer that keeps what is sent; `down` makes `send` raise, `gate` makes it wait, `unflushed` fails."""

    def __init__(self) -> None:
        self.sent: list[FakeSent] = []
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.down = False
        self.unflushed = False
        self.closed = False

    def send(self, topic: str, *, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> FakeSent:
        self.gate.wait(20)
        if self.down:
            self.arrived.release()
            raise KafkaError("planted outage")
        self.sent.append(FakeSent(value, headers))
        self.arrived.release()
        return self.sent[-1]

    def close(self, timeout: float) -> None:
        self.closed = True
        if self.unflushed:
            raise KafkaTimeoutError("planted")
