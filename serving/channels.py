"""How a client reaches EmbArk: addresses, balancing, retries, TLS and token; the same for both kinds of channel."""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving.limits import MAX_REPLY_BYTES, MAX_REQUEST_BYTES

ATTEMPTS = 5  # the most that gRPC allows; over 1.6 s, in which a connection that was refused is tried again twice
# A look-up changes nothing, so it may go twice. UNAVAILABLE: the call was not begun, or its server is gone. CANCELLED
# by the server: the call waited to be looked at when the server ended, or too many waited.
RETRIED = ("UNAVAILABLE", "CANCELLED")
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # A failed try costs a token, a call that is answered brings a half; with less than half of them nothing is tried
    # again. So a restart costs no call, and an overloaded server gets few more calls by it. A server that did not run
    # for 0.8 s finds more calls than may wait, and ends most of them at once: four clients that shared 420 calls a
    # second lost 241 calls with 200 tokens, and none with 400. With 1000, what an overloaded server had refused was
    # tried again for two seconds, until it was late (`benchmarks/overload.py`).
    "retryThrottling": {"maxTokens": 400, "tokenRatio": 0.5},
    "methodConfig": [
        {
            "name": [{"service": "embark.v1.EmbArk"}],
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": list(RETRIED),
            },
        }
    ],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTls:
    """PEM files of a client.

    Attributes:
        ca: of the authority that signed the server's certificate; None: those that gRPC knows.
        certificate, key: of the client, where the server wants to see them.
        server_name: in the server's certificate, where it is not the host of the address.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises:
        OSError: a file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


def open_channel(address: str | Sequence[str], tls: ClientTls | None, *, asynchronous: bool) -> Any:
    """A channel of `grpc`, or of `grpc.aio`.

    Args:
        address: `host:port`, or anything that gRPC resolves; several are `host:port` each, called in turn.

    Raises:
        OSError: one of several hosts has no address, or a file of TLS cannot be read.
        ValueError: no address at all.
    """
    target = address if isinstance(address, str) else _target(address)
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
        ("grpc.enable_http_proxy", 0),  # EmbArk is ours: never behind the proxy that the environment names
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),  # 2 minutes by default: too late to see that it is back
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        # Each client a connection of its own: a server of several processes spreads connections, not calls.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is None:
        return (grpc.aio if asynchronous else grpc).insecure_channel(target, options=options)
    name = tls.server_name or (None if isinstance(address, str) else _host(address[0]))
    if name:
        options += [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
    return (grpc.aio if asynchronous else grpc).secure_channel(target, tls.credentials(), options=options)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _target(addresses: Sequence[str]) -> str:
    """gRPC takes several addresses as numbers only."""
    if not addresses:
        raise ValueError("no address: at least one `host:port` is expected")
    if len(addresses) == 1:
        return addresses[0]
    found: dict[str, None] = {}
    for address in addresses:
        host, port = _host(address), int(address.rpartition(":")[2])
        for *_, place in socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM):
            found[f"{place[0]!s}:{port}"] = None
    return "ipv4:" + ",".join(found)
