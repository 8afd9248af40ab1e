"""A broker of its own, killed for longer than a message waits for it."""

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from embark.servers import free_port, java
from embark.servers.kafka import READY_SECONDS, Broker
from materializer import process as kfc
from serving.requests import RequestQueue, open_producer

pytestmark = [pytest.mark.servers, pytest.mark.chaos]

TOPIC = "requests"


def outage(address: str, broker: Broker, start: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    keys = itertools.count()
    taken: list[object] = []  # by Kafka, of what KFC's producer sent
    given_up: list[BaseException] = []
    with (
        closing(RequestQueue(open_producer(address, delivery_seconds=3.0), TOPIC)) as requests,
        closing(kfc.open_producer(address, delivery_seconds=3.0)) as producer,
    ):

        def until(holds: Callable[[], bool], what: str) -> None:
            by = time.monotonic() + 100
            while not holds():  # look-ups miss all the while, so that Kafka dies with some under way
                assert time.monotonic() < by, what
                requests.offer("text__v1", f"title {next(keys)}")
                producer.send(TOPIC, b"told").add_callback(taken.append).add_errback(given_up.append)
                time.sleep(0.01)

        until(lambda: requests.published > 20 and len(taken) > 20, "nothing is published")
        process = broker.server.process()
        assert process is not None
        process.kill()
        until(lambda: "Kafka does not take requests" in caplog.text and bool(given_up), "nothing is given up")
        start()
        before, taken_before = requests.published, len(taken)
        until(lambda: requests.published > before, "no request is published any more")
        until(lambda: len(taken) > taken_before, "KFC's producer sends nothing any more")


@pytest.mark.timeout(300)
def test_messages_are_taken_again_after_some_were_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jars, _ = java.class_paths(java.KAFKA, java.CASSANDRA, verified=tmp_path / "jars.json", arrived=lambda _: None)
    broker = Broker(
        node=1,
        address="127.0.0.1",
        port=free_port(),
        controller_port=free_port(),
        nodes=1,
        cluster_id="MkU3OEVBNTcwNTJENDM2Qg",
        folder=tmp_path / "kafka",
    )

    def start() -> None:
        broker.start(jars)
        broker.server.wait_until(broker.ready, READY_SECONDS)

    start()
    try:
        address = f"{broker.address}:{broker.port}"
        with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
            admin.create_topics([NewTopic(TOPIC, 1, 1)])
        outage(address, broker, start, caplog)
    finally:
        broker.server.stop()
