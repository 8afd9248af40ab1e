"""Metrics for Prometheus, over HTTP, where a setting says so."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server


@contextmanager
def metrics_served(address: str, registry: CollectorRegistry) -> Iterator[None]:
    """Serves what is in a registry at `http://ADDRESS/metrics` within the block; nothing where the address is empty.

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
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
