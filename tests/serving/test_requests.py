import logging
import threading
from collections.abc import Iterator

import pytest

from materializer.messages import EmbedRequest
from materializer.process import KafkaUnavailable
from serving.requests import ProducerOnDemand, RequestQueue
from tests.serving.fakes import Clock, FakeProducer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def producer() -> FakeProducer:
    return FakeProducer()


@pytest.fixture
def queue(producer: FakeProducer, clock: Clock) -> Iterator[RequestQueue]:
    queue = RequestQueue(producer, "requests", capacity=2, window=60, clock=clock)
    yield queue
    producer.gate.set()
    queue.close(5)


def arrived(producer: FakeProducer, count: int = 1) -> None:
    for _ in range(count):
        assert producer.arrived.acquire(timeout=20)


def test_a_request_says_what_is_asked_for_and_since_when(queue: RequestQueue, producer: FakeProducer) -> None:
    assert queue.offer("v", "k")
    arrived(producer)
    assert EmbedRequest.decode(producer.sent[0].value) == EmbedRequest(view="v", key="k", requested_at=10**12)


def test_a_request_under_way_is_not_repeated(queue: RequestQueue, producer: FakeProducer, clock: Clock) -> None:
    queue.offer("v", "k")
    arrived(producer)
    clock.now += 3600  # the broker has not acknowledged it: the window has not begun
    assert not queue.offer("v", "k")
    assert queue.offer("w", "k")


def test_the_window_begins_with_the_acknowledgement(queue: RequestQueue, producer: FakeProducer, clock: Clock) -> None:
    queue.offer("v", "k")
    arrived(producer)
    clock.now += 3600
    producer.sent[0].acknowledge()
    clock.now += 59
    assert not queue.offer("v", "k")
    clock.now += 2
    assert queue.offer("v", "k")


def test_a_request_that_failed_is_asked_for_by_the_next_look_up(queue: RequestQueue, producer: FakeProducer) -> None:
    queue.offer("v", "k")
    arrived(producer)
    producer.sent[0].fail()
    assert queue.offer("v", "k")


def test_a_full_queue_drops_and_never_blocks(queue: RequestQueue, producer: FakeProducer) -> None:
    producer.gate.clear()  # Kafka's client blocks, as it may for a minute
    taken = [queue.offer("v", f"k{i}") for i in range(50)]
    assert 2 <= sum(taken) <= 3  # two wait, one may be with the client
    assert queue.dropped == 50 - sum(taken)


def test_what_was_dropped_is_taken_when_there_is_room(queue: RequestQueue, producer: FakeProducer) -> None:
    producer.gate.clear()
    for i in range(50):
        queue.offer("v", f"k{i}")
    producer.gate.set()
    arrived(producer, 2)
    assert queue.offer("v", "k49")


def test_an_outage_of_kafka_loses_no_key_for_good(queue: RequestQueue, producer: FakeProducer) -> None:
    producer.down = True
    queue.offer("v", "k")
    arrived(producer)
    producer.down = False
    while not queue.offer("v", "k"):  # free again as soon as the failure has been noted
        threading.Event().wait(0.01)
    arrived(producer)
    assert EmbedRequest.decode(producer.sent[0].value).key == "k"


def test_closing_publishes_what_waits(producer: FakeProducer, clock: Clock) -> None:
    queue = RequestQueue(producer, "requests", clock=clock)
    for i in range(20):
        queue.offer("v", f"k{i}")
    queue.close(10)
    assert len(producer.sent) == 20
    assert producer.closed


def test_a_queue_that_is_closed_takes_nothing(producer: FakeProducer) -> None:
    queue = RequestQueue(producer, "requests")
    queue.close(10)
    assert not queue.offer("v", "k")


def test_what_cannot_be_flushed_is_told_and_does_not_fail_the_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    producer = FakeProducer()
    producer.unflushed = True
    queue = RequestQueue(producer, "requests")
    queue.close(10)
    assert producer.closed
    assert "may not have reached Kafka" in caplog.text


def test_no_error_of_one_request_ends_the_others(queue: RequestQueue, producer: FakeProducer) -> None:
    queue.offer("v", "\ud800")  # no key that look-ups let through: it has no UTF-8
    queue.offer("v", "k")
    arrived(producer)
    assert EmbedRequest.decode(producer.sent[0].value).key == "k"


def test_an_outage_is_told_once(queue: RequestQueue, producer: FakeProducer, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(2):
        queue.offer("v", f"k{i}")
    arrived(producer, 2)
    with caplog.at_level(logging.WARNING):
        for sent in producer.sent:
            sent.fail()
        assert caplog.text.count("Kafka does not take requests") == 1
        queue.offer("v", "k0")
        arrived(producer)
        producer.sent[-1].acknowledge()
        assert caplog.text.count("Kafka takes requests again") == 1


def test_many_offers_at_once_send_a_key_once(producer: FakeProducer) -> None:
    queue = RequestQueue(producer, "requests")
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda: taken.append(queue.offer("v", "k"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close(10)
    assert sum(taken) == 1
    assert len(producer.sent) == 1


def test_a_producer_on_demand_is_opened_by_the_first_request_and_again_after_an_outage(producer: FakeProducer) -> None:
    opened: list[bool] = []

    def open_one() -> FakeProducer:
        opened.append(True)
        if len(opened) == 1:
            raise KafkaUnavailable("planted")
        return producer

    on_demand = ProducerOnDemand(open_one)
    queue = RequestQueue(on_demand, "requests")
    assert opened == []
    while not producer.sent:  # the first one fails, and is asked for again
        queue.offer("v", "k")
        threading.Event().wait(0.01)
    queue.close(10)
    assert len(opened) == 2
    assert producer.closed


def test_a_producer_that_was_never_needed_is_never_opened() -> None:
    def fail() -> FakeProducer:
        raise AssertionError("opened")

    queue = RequestQueue(ProducerOnDemand(fail), "requests")
    queue.close(10)
    assert queue.published == 0
