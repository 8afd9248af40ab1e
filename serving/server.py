"""A grpc.aio server around the service: health, reflection, TLS, and an end that fails no call."""

import asyncio
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.embark_pb2 import DESCRIPTOR
from serving.limits import MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from serving.load import MAX_CALLS
from serving.service import EmbArkService
from serving.transport import Tls, TransportRefused

GRACE_SECONDS = 10.0  # > the longest budget of a look-up
# Beyond those that are answered: calls whose answer its reader has not taken yet, health, reflection.
MORE_CALLS = 32
PENDING = 4  # part of MAX_CALLS: 32 that nobody has looked at; 500 hot keys each, that is a twentieth of a second
NAMES = (
    DESCRIPTOR.services_by_name["EmbArk"].full_name,
    health.SERVICE_NAME,
    reflection.SERVICE_NAME,
)


class EmbArkServer:
    """Serves while it is in its context.

    Args:
        service: what answers.
        address: `host:port` to listen on; port 0 takes a free one.
        tls: None: plain text.
        shared_port: other processes listen on the port as well; the kernel spreads connections over them.
        reflected: tells clients such as grpcurl what there is to call.
        max_calls: that are held in memory, and MORE_CALLS; a PENDINGth of them may wait to be looked at.
        drain_seconds: between telling that it ends and taking no more calls, for balancers to hear of it.
    """

    def __init__(
        self,
        service: EmbArkService,
        address: str,
        *,
        tls: Tls | None = None,
        shared_port: bool = False,
        reflected: bool = True,
        max_calls: int = MAX_CALLS,
        drain_seconds: float = 0.0,
    ) -> None:
        self._address = address
        self._tls = tls
        self._drain_seconds = drain_seconds
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=max_calls + MORE_CALLS,
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_send_message_length", MAX_REPLY_BYTES),
                ("grpc.max_metadata_size", 16 * 1024),
                # Else a second server on the port is a mistake, and told so.
                ("grpc.so_reuseport", int(shared_port)),
                # Calls that come faster than Python looks at them wait in gRPC. Answered in turn, each would be when
                # its time is over; so few may wait. From the first number on some are ended, from the second on all.
                ("grpc.server.max_pending_requests", max(1, max_calls // PENDING)),
                ("grpc.server.max_pending_requests_hard_limit", max(2, 2 * max_calls // PENDING)),
                ("grpc.keepalive_time_ms", 60_000),  # a client that vanished frees what it held
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAMES[0], service.handlers()),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflected:
            reflection.enable_server_reflection(NAMES, self._server)
        self.port = 0

    async def __aenter__(self) -> Self:
        """Raises:
        TransportRefused: the address cannot be listened on, or a file of TLS cannot be used.
        """
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(self._address)
            else:
                self.port = self._server.add_secure_port(self._address, self._tls.credentials())
        except RuntimeError as error:
            raise TransportRefused(f"EmbArk cannot listen on {self._address}: {error}") from error
        await self._server.start()
        for name in ("", NAMES[0]):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._drain_seconds)
        await self._server.stop(GRACE_SECONDS)
