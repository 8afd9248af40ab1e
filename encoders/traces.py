"""What parts tell of a trace: spans, and the header that takes a trace from one process to the next.

Free of torch, and of OpenTelemetry: `embark.tracing` has it, where traces are wanted. Without them a span is nothing.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

Headers = Sequence[tuple[str, Any]]  # metadata of a gRPC call, or headers of a Kafka record

TRACEPARENT = "traceparent"  # W3C Trace Context: gRPC's metadata and Kafka's headers alike


class Traces(Protocol):
    """Where spans go. Safe to share between threads; the span that is open belongs to a thread or an asyncio task."""

    def span(
        self, name: str, came_with: Iterable[Headers] = (), **attributes: str | int
    ) -> AbstractContextManager[object]:
        """A span, open while in its context.

        Args:
            came_with: headers of what it answers. It is a child of the first that was traced, and linked to the others;
                where none was, it is a child of the span that is open.
            attributes: what it is about.
        """
        ...

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What takes the open span's trace along; nothing where there is none, or it is not kept."""
        ...


class NoTraces:
    """Traces nothing; looks at no header."""

    def span(
        self, name: str, came_with: Iterable[Headers] = (), **attributes: str | int
    ) -> AbstractContextManager[object]:
        return nullcontext()

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ()


NO_TRACES = NoTraces()
