"""Where EmbArk listens, and whether what passes there can be read by others."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc


class TransportRefused(Exception):
    """EmbArk does not listen as it was told to; the message says what to set."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of a server.

    Attributes:
        certificate: the server's own, with those that lead to its authority.
        key: its private key.
        client_ca: of the authority whose certificates clients must show (mutual TLS); None: they need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises:
        TransportRefused: a file cannot be read.
        """
        try:
            pair = (self.key.read_bytes(), self.certificate.read_bytes())
            authority = self.client_ca.read_bytes() if self.client_ca else None
        except OSError as error:
            raise TransportRefused(f"{error.filename} cannot be read: {error.strerror}") from error
        return grpc.ssl_server_credentials(
            [pair], root_certificates=authority, require_client_auth=authority is not None
        )


def check_private(address: str, tls: Tls | None, *, plaintext: bool) -> None:
    """Refuses to send embeddings and tokens in plain text where others can listen.

    Args:
        address: `host:port`.
        plaintext: it is wanted all the same, as behind a mesh that encrypts.

    Raises:
        TransportRefused: a public address without TLS.
    """
    if tls is None and not plaintext and not is_loopback(address):
        raise TransportRefused(
            f"{address} can be reached from other machines: set EMBARK_TLS_CERTIFICATE and EMBARK_TLS_KEY, or "
            "EMBARK_PLAINTEXT=true where the network encrypts by itself"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `host:port`."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
