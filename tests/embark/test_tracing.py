"""Traces: one through EmbArk, Kafka's header, KFC and Retina, as a collector gets it."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from embark.settings import Settings
from embark.tracing import TracingMissing, traces_of
from encoders.client import RetinaClient
from encoders.fetch import Fetcher
from encoders.server import RetinaServer
from encoders.service import RetinaService
from encoders.traces import NO_TRACES, TRACEPARENT, Traces
from feature_repo.directory import EncoderDirectory
from feature_repo.failures import MemoryFailureMarks
from materializer.archive import MemoryArchive
from materializer.messages import Topics
from materializer.worker import Worker
from serving.client import EmbArkClient
from serving.memory import MemoryRows, memory_archive
from serving.requests import RequestQueue
from tests.materializer.fakes import FakeClock, FakeConsumer, FakeKafka, FakeProducer
from tests.serving.fakes import SPECS, TEXT, served
from tests.serving.fakes import FakeProducer as Sending

TOPICS = Topics(live="live")


class Collector:
    """What an OpenTelemetry collector is told, by service."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        export = grpc.unary_unary_rpc_method_handler(
            self._export, ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
        )
        name = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": export}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def _export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    def __enter__(self) -> "Collector":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@contextmanager
def retina(traces: Traces) -> Iterator[str]:
    """The address of a running Retina."""
    ready, stop = threading.Event(), threading.Event()
    address: list[str] = []

    async def run() -> None:
        async with Fetcher() as fetcher:
            service = RetinaService(registered=lambda: SPECS, fetcher=fetcher, device="cpu", traces=traces)
            async with RetinaServer(service, "127.0.0.1:0") as server:
                address.append(f"127.0.0.1:{server.port}")
                ready.set()
                await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield address[0]
    finally:
        stop.set()
        thread.join()


def test_one_trace_leads_from_a_look_up_through_kafkas_header_and_kfc_to_retina(collector: Collector) -> None:
    settings = Settings(traces=f"http://127.0.0.1:{collector.port}", traces_share=1)
    directory = EncoderDirectory(lambda: SPECS)
    with ExitStack() as stack:
        embark, kfc, of_retina = (
            stack.enter_context(traces_of(settings, part)) for part in ("embark", "kfc", "retina")
        )
        # 1. a look-up misses two keys, and another one a third
        sending = Sending()
        with (
            closing(RequestQueue(sending, TOPICS.live, traces=embark)) as requests,
            served(memory_archive(SPECS, MemoryRows(), MemoryFailureMarks({}), requests), traces=embark) as address,
            EmbArkClient(address) as client,
        ):
            client.lookup(TEXT.view, ["cat", "dog"])
            client.lookup(TEXT.view, ["bird"])
            for _ in range(3):
                assert sending.arrived.acquire(timeout=60)
        # 2. KFC takes all three, and asks Retina at once
        clock = FakeClock()
        kafka = FakeKafka(clock)
        for sent in sending.sent:
            kafka.append(TOPICS.live, sent.value, b"", sent.headers)
        stop = threading.Event()
        with retina(of_retina) as address, RetinaClient(address, traces=kfc) as asked:
            archive = MemoryArchive()
            Worker(
                consumer=FakeConsumer(kafka, stop),
                producer=FakeProducer(kafka),
                retina=asked,
                archive=archive,
                marks=MemoryFailureMarks({}),
                directory=directory,
                topics=TOPICS,
                clock=clock,
                overlap=False,
                traces=kfc,
            ).run(stop)
        assert len(archive.rows) == 3
    # 3. what the collector got when they ended
    first, second = sorted(
        (span for _, span in collector.spans if span.name == "EmbArk/Lookup"), key=lambda s: s.start_time_unix_nano
    )
    ((of_kfc, embed),) = [each for each in collector.spans if each[1].name == "KFC/embed"]
    ((retinas, encode),) = [each for each in collector.spans if each[1].name == "Retina/Encode"]
    assert (of_kfc, retinas) == ("kfc", "retina")
    assert first.trace_id == embed.trace_id == encode.trace_id != second.trace_id
    assert (embed.parent_span_id, encode.parent_span_id) == (first.span_id, embed.span_id)
    assert [link.trace_id for link in embed.links] == [second.trace_id]


def test_what_is_not_kept_is_not_taken_along_and_what_the_caller_keeps_is(collector: Collector) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with traces_of(Settings(traces=f"http://127.0.0.1:{collector.port}", traces_share=0), "embark") as traces:
        with traces.span("a"):
            assert traces.headers() == ()
        with traces.span("b", [[("other", "x")], [(TRACEPARENT, b"no header \xff")]]):
            assert traces.headers() == ()
        with traces.span("c", [[(TRACEPARENT, parent)]]):
            ((name, value),) = traces.headers()
    assert (name, value[:36]) == (TRACEPARENT, parent[:36])
    assert [span.name for _, span in collector.spans] == ["c"]


def test_without_a_collector_there_are_no_traces_and_opentelemetrys_sdk_is_not_imported() -> None:
    with traces_of(Settings(), "embark") as traces:
        assert traces is NO_TRACES
    code = "import sys, embark.serve, embark.parts; sys.exit('opentelemetry.sdk' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=280)


def test_a_collector_without_the_extra_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with (
        pytest.raises(TracingMissing, match=r"uv sync --extra tracing"),
        traces_of(Settings(traces="http://127.0.0.1:1"), "embark"),
    ):
        pass
