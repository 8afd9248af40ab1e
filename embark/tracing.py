"""Traces by OpenTelemetry, sent to a collector; only where a setting names one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from embark.settings import Settings
from encoders.traces import NO_TRACES, TRACEPARENT, Headers, Traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext

MOST_LINKS = 128  # of a span: OpenTelemetry's own limit


class TracingMissing(Exception):
    """A collector is named, but what sends to it is not installed."""


class OpenTelemetryTraces:
    """Spans of one process.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("embark")
        self._format = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, came_with: Iterable[Headers] = (), **attributes: str | int) -> Iterator[object]:
        from opentelemetry.trace import Link, NonRecordingSpan, set_span_in_context

        contexts = filter(None, map(self._context, came_with))
        found = list({(each.trace_id, each.span_id): each for each in contexts}.values())
        parent = set_span_in_context(NonRecordingSpan(found[0])) if found else None
        links = [Link(each) for each in found[1 : MOST_LINKS + 1]]
        with self._tracer.start_as_current_span(name, parent, links=links, attributes=attributes) as span:
            yield span

    def headers(self) -> tuple[tuple[str, str], ...]:
        from opentelemetry.trace import get_current_span

        if not get_current_span().get_span_context().trace_flags.sampled:
            return ()
        carrier: dict[str, str] = {}
        self._format.inject(carrier)
        return ((TRACEPARENT, carrier[TRACEPARENT]),)

    def _context(self, headers: Headers) -> "SpanContext | None":
        from opentelemetry.trace import get_current_span

        value = next((value for name, value in headers if name == TRACEPARENT), None)
        if value is None:
            return None
        text = value if isinstance(value, str) else value.decode("ascii", "replace")
        context = get_current_span(self._format.extract({TRACEPARENT: text})).get_span_context()
        return context if context.is_valid else None


@contextmanager
def traces_of(settings: Settings, part: str) -> Iterator[Traces]:
    """The traces of one part, as `retina`; what has not been sent is sent when the context ends.

    Raises:
        TracingMissing: see there.
    """
    if not settings.traces:
        yield NO_TRACES
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise TracingMissing(
            f"EMBARK_TRACES is {settings.traces}, but {error.name} is not installed: `uv sync --extra tracing`"
        ) from error
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: part}),
        sampler=ParentBasedTraceIdRatio(settings.traces_share),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=settings.traces, insecure=not settings.traces.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield OpenTelemetryTraces(provider)
    finally:
        provider.shutdown()
