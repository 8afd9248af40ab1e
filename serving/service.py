"""EmbArk's service: what each call does, over any archive."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from encoders.traces import NO_TRACES, Traces
from feature_repo.directory import UnknownView
from serving.archive import Archive
from serving.callers import Anybody, Caller, Callers
from serving.drafts import Drafts
from serving.embark_pb2 import (
    FLOAT32,
    AnnounceReply,
    AnnounceRequest,
    LookupManyRequest,
    LookupRequest,
    Precision,
)
from serving.limits import MAX_KEYS, MAX_STREAM_KEYS, MAX_VIEWS, STREAMED_AT_ONCE
from serving.load import Gate, budget
from serving.metrics import Metrics
from serving.packed_keys import Question
from serving.packing import many_bytes, reply_bytes
from serving.refusals import BadArgument, Refused, TooLate, TooManyKeys
from serving.services import Services, UnknownService

T = TypeVar("T")

OK, UNKNOWN = grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN  # members of an enum are found slowly
MOST_AHEAD_SECONDS = 300.0  # decision 3 of the design: what is further ahead is no clock's skew
STALL_SECONDS = 30.0  # for which a reader of a stream may take nothing


class EmbArkService:
    """`embark.proto` on grpc.aio, over any archive. Look-ups are answered with serialized replies: see `handlers`.

    Args:
        archive: answers.
        max_keys: of one call.
        callers: who may do what.
        gate: how many calls are answered at a time.
        services: the feature services.
        metrics: told of each call.
        traces: a span for each call.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        max_keys: int = MAX_KEYS,
        callers: Callers | None = None,
        gate: Gate | None = None,
        services: Services | None = None,
        metrics: Metrics | None = None,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._traces = traces
        self._archive = archive
        self._max_keys = max_keys
        self._callers = callers or Anybody()
        self._gate = gate or Gate()
        self._services = services or Services()
        self._metrics = metrics
        self._drafts = Drafts()

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """The methods by name, as a server registers them; replies are serialized already (`serving.packing`)."""
        return {
            "Lookup": grpc.unary_unary_rpc_method_handler(self.Lookup),
            "LookupMany": grpc.unary_unary_rpc_method_handler(self.LookupMany, LookupManyRequest.FromString),
            "LookupStream": grpc.unary_stream_rpc_method_handler(self.LookupStream, LookupRequest.FromString),
            "Announce": grpc.unary_unary_rpc_method_handler(
                self.Announce, AnnounceRequest.FromString, AnnounceReply.SerializeToString
            ),
        }

    async def Lookup(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """See `embark.proto`; answers a serialized `LookupReply` to a serialized `LookupRequest`."""

        async def answer(caller: Caller) -> bytes:
            asked = Question.of(request)
            view, keys, precision = asked.view, asked.keys, asked.precision
            count = len(keys)
            caller.check(view, count, self._max_keys)
            caller.spend(count, asked.size + self._vector_bytes(view, count, precision))
            return await self._reply(view, keys, precision, context)

        return self._sending(await self._guarded("Lookup", context, answer), context)

    async def LookupMany(self, request: LookupManyRequest, context: grpc.aio.ServicerContext) -> bytes:
        """See `embark.proto`; answers a serialized `LookupManyReply`."""

        async def answer(caller: Caller) -> bytes:
            asked = await self._asked(request)
            if sum(len(keys) for _, keys in asked) > self._max_keys:
                raise TooManyKeys(
                    f"{sum(len(keys) for _, keys in asked)} keys in all views, {self._max_keys} are allowed in a call"
                )
            for view, keys in asked:
                caller.check(view, len(keys), self._max_keys)
            vectors = sum(self._vector_bytes(view, len(keys), request.precision) for view, keys in asked)
            caller.spend(sum(len(keys) for _, keys in asked), request.ByteSize() + vectors)
            replies = await asyncio.gather(
                *(self._reply(view, keys, request.precision, context) for view, keys in asked)
            )
            return many_bytes((view, reply) for (view, _), reply in zip(asked, replies, strict=True))

        return self._sending(await self._guarded("LookupMany", context, answer), context)

    async def LookupStream(self, request: LookupRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """See `embark.proto`. The next reply is made when the one before has been taken: a slow reader costs one."""

        async def answer(caller: Caller) -> None:
            if len(request.keys) > MAX_STREAM_KEYS:
                raise TooManyKeys(f"{len(request.keys)} keys, {MAX_STREAM_KEYS} are allowed in a stream")
            for first in range(0, len(request.keys), STREAMED_AT_ONCE):
                keys = list(request.keys[first : first + STREAMED_AT_ONCE])
                caller.check(request.view, 0, self._max_keys)
                vectors = self._vector_bytes(request.view, len(keys), request.precision)
                caller.spend(len(keys), request.ByteSize() * len(keys) // len(request.keys) + vectors)
                reply = await self._reply(request.view, keys, request.precision, context, first)
                try:
                    await asyncio.wait_for(context.write(reply), STALL_SECONDS)
                except TimeoutError:
                    raise TooLate(f"nothing was taken of the stream for {STALL_SECONDS:g} s") from None

        await self._guarded("LookupStream", context, answer)
        return
        yield  # grpc.aio tells a stream by it

    async def Announce(self, request: AnnounceRequest, context: grpc.aio.ServicerContext) -> AnnounceReply:
        """See `embark.proto`."""

        async def answer(caller: Caller) -> AnnounceReply:
            caller.check_announce()
            caller.check(request.view, len(request.keys), self._max_keys)
            caller.spend(len(request.keys), request.ByteSize())
            times = list(request.published_at)
            if times and len(times) != len(request.keys):
                raise BadArgument(f"{len(times)} times for {len(request.keys)} keys: one each is expected, or none")
            ahead = int((time.time() + MOST_AHEAD_SECONDS) * 1_000_000)
            wrong = [moment for moment in times if not 0 < moment <= ahead]
            if wrong:
                raise BadArgument(
                    f"published_at {wrong[0]}: microseconds since 1970 are expected, no more than 5 minutes ahead"
                )
            taken = await asyncio.to_thread(
                self._archive.announce, request.view, list(request.keys), times or None, bulk=request.bulk
            )
            return AnnounceReply(requested=taken)

        reply: AnnounceReply = await self._guarded("Announce", context, answer)
        return reply

    async def _asked(self, request: LookupManyRequest) -> list[tuple[str, Sequence[str]]]:
        """Views with their keys."""
        if bool(request.service) == bool(request.views):
            raise BadArgument("name a feature service or views: one of the two")
        if request.service:
            find = self._services.views
            views = await asyncio.to_thread(find, request.service) if self._services.stale else find(request.service)
        else:
            views = list(dict.fromkeys(request.views))
        if len(views) > MAX_VIEWS:
            raise BadArgument(f"{len(views)} views, {MAX_VIEWS} are allowed in a call")
        columns = {column.join_key: column.keys for column in request.columns}
        asked: list[tuple[str, Sequence[str]]] = []
        for view in views:
            join_key = self._archive.spec(view).join_key
            if join_key not in columns:
                raise BadArgument(f"{view} is read by {join_key}: there is no such column")
            asked.append((view, list(columns[join_key])))  # protobuf's own list is read slowly
        return asked

    def _vector_bytes(self, view: str, keys: int, precision: Precision) -> int:
        """Of an answer."""
        return keys * self._archive.spec(view).dim * (4 if precision == FLOAT32 else 2)

    async def _reply(
        self,
        view: str,
        keys: Sequence[str],
        precision: Precision,
        context: grpc.aio.ServicerContext,
        first: int = 0,
    ) -> bytes:
        spec = self._archive.spec(view)
        seconds = budget(context.time_remaining())
        draft = self._drafts.of(len(keys), spec.dim, spec.pinned, first) if keys and precision == FLOAT32 else None
        answer = await self._archive.answer(view, keys, seconds, draft.room if draft is not None else None)
        if self._metrics is not None:
            self._metrics.answered(view, answer.status)
        if draft is not None:
            return draft.finished(answer)
        return reply_bytes(answer, spec.pinned, precision, first)

    def _sending(self, reply: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Counts a reply from when it is made until the call has ended."""
        size = len(reply)
        self._gate.made(size)
        context.add_done_callback(lambda _: self._gate.sent(size))
        return reply

    async def _guarded(
        self, method: str, context: grpc.aio.ServicerContext, answer: Callable[[Caller], Awaitable[T]]
    ) -> T:
        """Lets a known caller in while there is room, and tells what is refused by gRPC's codes."""
        began, code = time.perf_counter(), UNKNOWN
        try:
            try:
                came_with = context.invocation_metadata() or ()
                with self._gate, self._traces.span(f"EmbArk/{method}", (came_with,)):
                    done = await answer(self._callers.caller(came_with))
                    code = OK
                    return done
            except Refused as refusal:
                code, why = refusal.code, str(refusal)
            except (UnknownView, UnknownService) as unknown:
                code, why = grpc.StatusCode.NOT_FOUND, str(unknown)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            await context.abort(code, why)
            raise AssertionError("abort raises")
        finally:
            if self._metrics is not None:
                self._metrics.called(method, code.name, time.perf_counter() - began)
