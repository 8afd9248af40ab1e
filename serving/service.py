"""EmbArk's service: look-ups over gRPC."""

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from encoders.matrix import pack
from feature_repo.directory import UnknownView
from serving.archive import Archive
from serving.embark_pb2 import LookupReply, LookupRequest
from serving.embark_pb2_grpc import EmbArkServicer, add_EmbArkServicer_to_server
from serving.limits import MAX_KEYS, MAX_REASON_CHARACTERS, MAX_REPLY_BYTES, MAX_REQUEST_BYTES

READERS = 16  # threads that wait for the store
GRACE_SECONDS = 10.0


class EmbArkService(EmbArkServicer):  # type: ignore[misc]
    """`embark.proto` on grpc.aio, over any archive.

    Args:
        archive: answers; called from several threads.
        max_keys: of one call.
    """

    def __init__(self, archive: Archive, *, max_keys: int = MAX_KEYS) -> None:
        self._archive = archive
        self._max_keys = max_keys
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="lookup")

    async def Lookup(self, request: LookupRequest, context: grpc.aio.ServicerContext) -> LookupReply:
        """See `embark.proto`."""
        if len(request.keys) > self._max_keys:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{len(request.keys)} keys, {self._max_keys} are allowed in a call"
            )
        try:
            return await self._lookup(request, context)
        except UnknownView as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            raise AssertionError("abort raises") from error

    async def _lookup(self, request: LookupRequest, context: grpc.aio.ServicerContext) -> LookupReply:
        spec = self._archive.spec(request.view)
        answer = await self._archive.answer(request.view, request.keys, context.time_remaining())
        return LookupReply(
            vectors=pack(answer.vectors),
            status=answer.status.tobytes(),
            embedding_id=answer.embedding_id,
            event_time=answer.event_time,
            failures={i: why[:MAX_REASON_CHARACTERS] for i, why in answer.failures.items()},
            weights=spec.pinned,
        )

    def close(self) -> None:
        """Ends the threads."""
        self._readers.shutdown()


class EmbArkServer:
    """A grpc.aio server of one service, with health: serving while it is in its context.

    Args:
        service: what answers.
        address: `host:port` to listen on; port 0 takes a free one.
    """

    def __init__(self, service: EmbArkService, address: str) -> None:
        self._service = service
        self._address = address
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_send_message_length", MAX_REPLY_BYTES),
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, and told so
            ]
        )
        add_EmbArkServicer_to_server(service, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = 0

    async def __aenter__(self) -> Self:
        self.port = self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(GRACE_SECONDS)
        self._service.close()
