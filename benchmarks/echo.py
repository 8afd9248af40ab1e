"""The floor under any look-up over gRPC: a server that answers bytes which it was given before, whatever is asked.

    python -m benchmarks.echo PORT

`/echo/put/NAME` keeps the bytes of its request, `/echo/get/NAME` answers them. The same grpc.aio, on the
same event loop and with the same options, as EmbArk's, and nothing behind it.
"""

import sys
from typing import Any

import grpc
import uvloop

from serving.limits import MAX_REPLY_BYTES

OPTIONS = [("grpc.max_receive_message_length", MAX_REPLY_BYTES), ("grpc.max_send_message_length", MAX_REPLY_BYTES)]


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Bytes by name."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def service(self, handler_call_details: Any) -> Any:
        _, _, what, name = handler_call_details.method.split("/")

        async def put(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self._kept[name] = request
            return b""

        async def get(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return self._kept[name]

        return grpc.unary_unary_rpc_method_handler({"put": put, "get": get}[what])


async def serve(port: int) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
