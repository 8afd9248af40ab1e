"""Ports of the loopback interface: which are free, and who holds one that is not."""

import secrets
import socket
from collections.abc import Collection, Sequence

import psutil

from embark.servers.processes import ServersError

# Below those that systems give to outgoing connections, any of which may have taken such a port before the server that
# it was found for comes to listen there; and below Nomad's, which start at 20000.
CHOSEN_FROM = range(10_000, 20_000)


def free_port(addresses: Sequence[str] = ("127.0.0.1",), besides: Collection[int] = ()) -> int:
    """A port that nothing uses now on any of `addresses`, none of `besides`; by chance, so that two who ask get two.

    Raises:
        ServersError: nearly all are taken.
    """
    for _ in range(1000):
        port = secrets.choice(CHOSEN_FROM)
        if port not in besides and is_free(addresses, port):
            return port
    raise ServersError(f"no port of {', '.join(addresses)} from {CHOSEN_FROM[0]} to {CHOSEN_FROM[-1]} is free")


def is_free(addresses: Sequence[str], port: int) -> bool:
    """Whether a server could listen on that port of each of `addresses`."""
    return all(_refusal(address, port) is None for address in addresses)


def listens(address: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((address, port), 1.0).close()
    except OSError:
        return False
    return True


def check_port(name: str, address: str, port: int, remedy: str) -> None:
    """Refuses a port that the server `name` could not listen on.

    Raises:
        ServersError: it is taken; the process that holds it is named where that can be known.
    """
    refusal = _refusal(address, port)
    if refusal is not None:
        raise ServersError(
            f"{name} cannot listen on {address}:{port}: {refusal}{_holder(address, port)}; end that{remedy}"
        )


def _refusal(address: str, port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.strerror
    return None


def _holder(address: str, port: int) -> str:
    held_by = {address, f"::ffff:{address}", "0.0.0.0", "::"}  # noqa: S104 - compared with, not bound
    try:
        for connection in psutil.net_connections("tcp"):
            at = connection.laddr
            if at and at.port == port and at.ip in held_by and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):  # not ours to know
        return ""
    return ""
