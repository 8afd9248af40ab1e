"""Sends requests of dead letters again: what `embark dead-letters retry` and the console do."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_repo.failures import FailureMarks
    from materializer.dead_letter_actions import Retry


def resend(
    servers: str,
    marks: "FailureMarks",
    retries: "Sequence[Retry]",
    acknowledged: Callable[[int], None] = lambda _: None,
) -> None:
    """Clears the failure marks of the keys, then sends; each is acknowledged by the broker when this returns.

    Args:
        servers: bootstrap servers of Kafka.
        acknowledged: told how many more requests the broker has.

    Raises:
        RetryStopped: the broker did not take all of them.
        StoreUnavailable: a mark could not be cleared.
        KafkaUnavailable: Kafka does not answer.
    """
    from materializer.dead_letter_actions import send_again
    from materializer.process import CLOSE_SECONDS, kafka_reached, open_producer

    with kafka_reached(servers):
        producer = open_producer(servers)
    try:
        send_again(retries, producer=producer, marks=marks, acknowledged=acknowledged)
    finally:
        producer.close(timeout=CLOSE_SECONDS)
