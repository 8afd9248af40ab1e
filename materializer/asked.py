"""What is asked for: requests that are well formed, one a view and key, out of the records that were taken."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory, UnknownView
from materializer.clock import Clock
from materializer.failures import Failure, Remedy
from materializer.group import Record
from materializer.messages import EmbedRequest, MalformedMessage, Topics

Identity = tuple[str, str, int]  # of a request: see `identity`


class Asked(NamedTuple):
    """A request that is well formed: view known, key canonical, event time not in the future.

    A tuple: a frozen dataclass takes five times as long to make, and each request has one.
    """

    record: Record
    request: EmbedRequest
    spec: EncoderSpec

    def failed(self, reason: str, detail: str, remedy: Remedy) -> Failure:
        return Failure(
            record=self.record, request=self.request, canonical=True, reason=reason, detail=detail, remedy=remedy
        )


class Decoder:
    """Reads records, of a consumer's only thread.

    Args:
        directory: which views there are; read again, once a batch, where a request names another.
        topics: where records come from.
    """

    def __init__(self, directory: EncoderDirectory, topics: Topics, clock: Clock) -> None:
        self._directory = directory
        self._topics = topics
        self._clock = clock
        self._refreshed = False  # in this batch

    def decode(self, records: Iterable[Record], in_flight: Collection[Identity]) -> tuple[list[Asked], list[Failure]]:
        """Well-formed requests, one a view and key, and the failures of the rest.

        Args:
            in_flight: identities of what is asked for in batches before this one: these are left out.
        """
        chosen: dict[tuple[str, str, bool], Asked] = {}
        failures: list[Failure] = []
        self._refreshed = False
        now = self._clock.now()
        for record in records:
            request = None
            try:
                request = EmbedRequest.decode(record.value)
                spec = self._spec(request.view)
                key, event_time = canonical_key(spec, request.key), _event_time(request, record, now)
                if key != request.key or event_time != request.requested_at:
                    request = replace(request, key=key, requested_at=event_time)
            except (MalformedMessage, UnknownView, KeyRefused) as error:
                reason, detail = type(error).__name__, str(error)
                failures.append(
                    Failure(
                        record=record, request=request, canonical=False, reason=reason, detail=detail, remedy="never"
                    )
                )
                continue
            if identity(request) in in_flight and record.topic != self._topics.retry:
                # A batch before this one answers it, and is committed first. But a retry may be that very answer: it
                # is there before the batch that sent it is committed, and due by then where a commit takes long.
                continue
            one = (request.view, request.key, request.refresh)
            before = chosen.get(one)
            if before is None or _rank(request) < _rank(before.request):
                chosen[one] = Asked(record, request, spec)
        return list(chosen.values()), failures

    def _spec(self, view: str) -> EncoderSpec:
        if view not in self._directory.specs and not self._refreshed:
            self._directory.refresh()  # it may have been applied a moment ago
            self._refreshed = True
        return self._directory.spec(view)


def _event_time(request: EmbedRequest, record: Record, now: int) -> int:
    # Never in the future. The broker's time bounds it first, since that is the same in every replay, which then
    # writes the same row. It counts in milliseconds; so up to the end of that one.
    return min(request.requested_at, record.timestamp * 1000 + 999, now)


def by_view(asked: Iterable[Asked]) -> list[tuple[EncoderSpec, list[Asked]]]:
    """The requests of each view together, in the order in which the views came up; refreshes apart: no key is twice."""
    views: dict[tuple[str, bool], tuple[EncoderSpec, list[Asked]]] = {}
    for one in asked:
        views.setdefault((one.spec.view, one.request.refresh), (one.spec, []))[1].append(one)
    return list(views.values())


def identity(request: EmbedRequest) -> Identity:
    """Equal for requests of which one answers the other: a refresh is answered by itself alone."""
    return (request.view, request.key, request.requested_at if request.refresh else 0)


def _rank(request: EmbedRequest) -> tuple[int, int]:
    # The earliest is the event, of refreshes the last; of equal ones (a retry that was sent twice) the one that has
    # been tried more.
    return (-request.requested_at if request.refresh else request.requested_at, -request.attempt)
