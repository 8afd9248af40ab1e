"""Metrics for Prometheus and a health check for orchestrators, over HTTP, where a setting says so."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HEALTH = "/health"


@contextmanager
def metrics_served(
    address: str, registry: CollectorRegistry, healthy: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Serves what is in a registry at `http://ADDRESS/metrics` within the block; nothing where the address is empty.

    `http://ADDRESS/health` answers 200 while `healthy()`, else 503: before the part serves, and from the moment that it
    is told to end. It speaks of the part itself, not of the servers that it needs: an orchestrator that restarted
    every process in an outage of Kafka would make it worse.

    Args:
        address: `host:port`.

    Raises:
        OSError: the address cannot be listened on.
    """
    if not address:
        yield
        return
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=registry)
    server.set_app(_with_health(server.get_app(), healthy))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _with_health(metrics: "WSGIApplication | None", healthy: Callable[[], bool]) -> "WSGIApplication":
    def answer(environment: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        if metrics is not None and environment["PATH_INFO"] != HEALTH:
            return metrics(environment, start)
        well = healthy()
        start("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if well else b"not serving\n"]

    return answer
