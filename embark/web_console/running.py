"""The console as a process: where it may listen, and what it is put together from."""

import logging

import uvicorn

from embark.parts import fetcher_of
from embark.serve import tls_of
from embark.settings import Settings
from embark.web_console.access import Access
from embark.web_console.actions import Actions
from embark.web_console.app import ConsoleApp
from embark.web_console.guard import LOOPBACK, name_of
from embark.web_console.state import Observed
from serving.transport import TransportRefused, check_private, is_loopback

logger = logging.getLogger(__name__)


def run_console(settings: Settings, *, open_to_read: bool) -> None:
    """The console, until a signal stops it.

    Args:
        open_to_read: reading needs no token, wherever it listens.

    Raises:
        TransportRefused: it would listen where or to whom it should not.
        NoRepo: there is no feature repo.
    """
    address = settings.console_address
    tls = tls_of(settings)
    check_listening(settings, open_to_read=open_to_read)
    access = Access(settings.console_token, open_to_read=open_to_read or is_loopback(address))
    host, _, port = address.rpartition(":")
    with Observed(settings) as observed:
        app = ConsoleApp(
            observed,
            Actions(settings, observed.archive.marks),
            access,
            lambda: fetcher_of(settings),
            hosts=hosts_of(settings),
            secure=tls is not None,
        )
        logger.info("the console listens on %s://%s", "https" if tls else "http", address)
        uvicorn.run(
            app.starlette,
            host=host.strip("[]"),
            port=int(port),
            log_level=settings.log_level.lower(),
            log_config=None,  # ours
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            ssl_certfile=str(tls.certificate) if tls else None,
            ssl_keyfile=str(tls.key) if tls else None,
            ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
            ssl_cert_reqs=2 if tls and tls.client_ca else 0,  # ssl.CERT_REQUIRED, CERT_NONE
        )


def check_listening(settings: Settings, *, open_to_read: bool) -> None:
    """Refuses an address that other machines reach, unless somebody said who may look, and nobody can listen in.

    Raises:
        TransportRefused: as its message says.
    """
    address = settings.console_address
    check_private(address, tls_of(settings), plaintext=settings.plaintext)
    if not is_loopback(address) and not settings.console_token and not open_to_read:
        raise TransportRefused(
            f"{address} can be reached from other machines: set EMBARK_CONSOLE_TOKEN, which is then needed to see"
            " anything, or give --open, so that whoever comes may read"
        )


def hosts_of(settings: Settings) -> frozenset[str] | None:
    """The names under which browsers may ask: this machine's own, and those of the settings; None: any.

    Where other machines may come, the console has a token, which pages of strangers do not have, or is open to all.
    """
    if not is_loopback(settings.console_address):
        return None
    return LOOPBACK | {name_of(settings.console_address)} | {name.lower() for name in settings.console_hosts}
