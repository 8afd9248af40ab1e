"""The network that strangers' URLs lead to: which addresses are connected to, and what its failures are called.

The address that is checked is the address that is connected to: a name is resolved once a connection, and a second
answer of its name server (DNS rebinding) is never asked for.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from encoders.addresses import Network, may_connect
from encoders.encoder import Blocked, FetchError, NotFound, ServerFailed, Timeout
from encoders.exchange import BadAnswer, Connection
from encoders.target import because, host_of

MAX_ADDRESSES = 3  # of one name
RESOLVING_THREADS = 64  # one a download: `getaddrinfo` cannot be cut short, and a slow name server must not hold up all
# Which answers of `getaddrinfo` say that there is no such name; EAI_NODATA is not defined everywhere
NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

Resolve = Callable[[str, int], Sequence[str]]


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, in the system's order of preference. Blocks.

    Raises:
        OSError, UnicodeError: there are none.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Every error of the network as a `FetchError`; one that is no such error is a bug and stays what it is."""
    try:
        yield
    except FetchError:
        raise
    except TimeoutError as error:
        raise Timeout(f"no answer in time from {host_of(url)}{because(error)}") from error
    except socket.gaierror as error:
        if error.errno in NO_SUCH_NAME:
            raise NotFound(f"there is no host {host_of(url)!r}") from error
        raise ServerFailed(f"the name {host_of(url)!r} cannot be resolved now{because(error)}") from error
    except UnicodeError as error:
        raise NotFound(f"{host_of(url)!r} is no valid name of a host{because(error)}") from error
    except (BadAnswer, OSError) as error:
        raise ServerFailed(f"{host_of(url)} failed: {type(error).__name__}{because(error)}") from error


class PinnedNetwork:
    """Connects to addresses that were checked, never to a name."""

    def __init__(self, allowed: Sequence[Network], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._threads = ThreadPoolExecutor(RESOLVING_THREADS, thread_name_prefix="resolve")

    async def connect(self, host: str, port: int, tls: ssl.SSLContext | None, seconds: float) -> Connection:
        """A connection to the first address of a host that takes one.

        Args:
            tls: certificates to trust, which are checked for the host's name; None: in the clear.
            seconds: for each address.

        Raises:
            Blocked: the host leads to addresses alone that may not be connected to.
            TimeoutError, OSError, UnicodeError: no address, or none that can be connected to.
        """
        found = await self._addresses(host, port)
        usable = [address for address in dict.fromkeys(found) if may_connect(address, self._allowed)]
        if not usable:
            raise Blocked(f"{host!r} leads to {', '.join(found) or 'no address'}, which may not be fetched from")
        *others, last = usable[:MAX_ADDRESSES]
        for address in others:
            with contextlib.suppress(OSError):  # a TimeoutError is one; the next one may answer
                return await self._connected(address, host, port, tls, seconds)
        return await self._connected(last, host, port, tls, seconds)

    async def _connected(
        self, address: str, host: str, port: int, tls: ssl.SSLContext | None, seconds: float
    ) -> Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            _, connection = await loop.create_connection(
                Connection,
                address,
                port,
                ssl=tls,
                server_hostname=host if tls else None,
                flags=socket.AI_NUMERICHOST,  # so that nothing is looked up any more, whatever the address looks like
            )
        return connection

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        with contextlib.suppress(ValueError):  # an address needs no name server, and so no thread
            return [str(ip_address(host))]
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host, port)

    def close(self) -> None:
        """Lets no name be resolved any more; does not wait for those that are being resolved."""
        self._threads.shutdown(wait=False, cancel_futures=True)
