"""Headers by which some hosts know Retina: a secret as it is, or a signature made with it."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from encoders.keys import DEFAULT_PORTS
from encoders.target import Target

HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
SECRET = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
HOST = re.compile(r"[a-z0-9.-]+(:[0-9]{1,5})?|\[[0-9a-f:]+\](:[0-9]{1,5})?")
OURS = ("host", "user-agent", "accept", "accept-encoding", "content-length", "transfer-encoding", "connection")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSecret:
    """What one host is to be shown.

    Attributes:
        secret: sent as it is (`value`: `Bearer <token>`, say), or the key of a signature (`hmac-sha256`).
        scheme: `hmac-sha256` sends `t=<seconds since 1970>,v1=<hex digits>`, the HMAC of the time, the host as in the
            `Host` header and the path with its query, each on a line of its own.
        header: its name.
        allow_http: also where everybody on the way can read it.

    Raises:
        ValueError: no valid header.
    """

    secret: str = field(repr=False)
    scheme: Literal["value", "hmac-sha256"] = "value"
    header: str = "Authorization"
    allow_http: bool = False

    def __post_init__(self) -> None:
        if HEADER.fullmatch(self.header) is None or self.header.lower() in OURS:
            raise ValueError(f"no header that can be added: {self.header!r}")
        if SECRET.fullmatch(self.secret) is None:
            raise ValueError("the secret must be printable ASCII, and not empty")

    def value(self, host: bytes, target: bytes, now: int) -> bytes:
        """The header's value for a request; `now` in seconds since 1970."""
        if self.scheme == "value":
            return self.secret.encode()
        signed = b"%d\n%b\n%b" % (now, host, target)
        return b"t=%d,v1=%b" % (now, hmac.new(self.secret.encode(), signed, hashlib.sha256).hexdigest().encode())


class Signer:
    """Adds the header of a host to requests of that host and of no other.

    Args:
        secrets: `host` or `host:port` → its secret. Without a port it is the scheme's own; subdomains are other hosts.

    Raises:
        ValueError: no host.
    """

    def __init__(self, secrets: Mapping[str, HostSecret]) -> None:
        for host in secrets:
            if HOST.fullmatch(host) is None:
                raise ValueError(f"{host!r} is no host in lower case, as images.example.com or images.example.com:8443")
        self._secrets = {host.encode(): secret for host, secret in secrets.items()}

    def headers(self, target: Target, host: bytes, now: int) -> list[tuple[bytes, bytes]]:
        """What is to be added to a request.

        Args:
            target: where it goes.
            host: as in its `Host` header.
            now: seconds since 1970.
        """
        name = host.rpartition(b":")[0] if target.port == DEFAULT_PORTS.get(target.scheme) else host
        secret = self._secrets.get(name)
        if secret is None or (target.scheme != "https" and not secret.allow_http):
            return []
        return [(secret.header.encode(), secret.value(host, target.path, now))]
