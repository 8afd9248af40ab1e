import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from embark.metrics import metrics_served
from embark.servers import free_port


def test_metrics_are_told_within_the_block_alone() -> None:
    registry = CollectorRegistry()
    Counter("planted", "A counter.", registry=registry).inc(3)
    address = f"127.0.0.1:{free_port()}"
    with metrics_served(address, registry), urllib.request.urlopen(f"http://{address}/metrics") as answer:
        assert b"planted_total 3.0" in answer.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{address}/metrics")


def test_without_an_address_nothing_listens() -> None:
    with metrics_served("", CollectorRegistry()):
        pass


def test_an_address_in_use_is_an_error() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        metrics_served(address, CollectorRegistry()),
        pytest.raises(OSError, match="in use"),
        metrics_served(address, CollectorRegistry()),
    ):
        pass


def test_health_is_told_beside_them() -> None:
    address = f"127.0.0.1:{free_port()}"
    serves = threading.Event()

    def health() -> int:
        try:
            with urllib.request.urlopen(f"http://{address}/health") as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code

    with metrics_served(address, CollectorRegistry(), serves.is_set):
        assert health() == 503
        serves.set()
        assert health() == 200
