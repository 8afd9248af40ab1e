"""Retina as a server: its service on a port, with gRPC's health and reflection services beside it."""

import errno
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from encoders.replicas import MAX_MESSAGE_BYTES, SERVICE
from encoders.retina_pb2_grpc import add_RetinaServicer_to_server
from encoders.service import RetinaService

GRACE_SECONDS = 20.0  # > a download's 10 s and the batches after it


class RetinaServer:
    """A server of one service, with gRPC's health service: it serves while it is in its context.

    Leaving the context says NOT_SERVING and refuses new calls at once, gives those at hand `grace` seconds, then
    cancels them.

    Args:
        service: what answers; closed at the end.
        address: `host:port` to listen on; port 0 takes a free one, found in `port`.
        grace: seconds.
        reflects: whether gRPC's reflection service describes it to tools as grpcurl.
        ready: whether it says SERVING from the start; otherwise from `set_ready` on.
    """

    def __init__(
        self,
        service: RetinaService,
        address: str,
        *,
        grace: float = GRACE_SECONDS,
        reflects: bool = True,
        ready: bool = True,
    ) -> None:
        self._service = service
        self._address = address
        self._grace = grace
        self._reflects = reflects
        self._ready = ready
        self._health = health.aio.HealthServicer()
        self.port = 0

    async def __aenter__(self) -> Self:
        """Listens.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # a second Retina on the port is an error, not a share of the calls
            ]
        )
        add_RetinaServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._reflects:
            reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(errno.EADDRINUSE, f"Retina cannot listen on {self._address}") from error
        status = health_pb2.HealthCheckResponse
        await self._says(status.SERVING if self._ready else status.NOT_SERVING)
        await self._server.start()
        return self

    async def set_ready(self) -> None:
        """Says SERVING: a balancer may send calls."""
        await self._says(health_pb2.HealthCheckResponse.SERVING)

    async def _says(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._grace)
        self._service.close()
