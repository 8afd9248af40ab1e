"""Sends requests of dead letters again: what `embark dead-letters retry` and the console do."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feast import FeatureStore

    from materializer.dead_letter_actions import Retry


def resend(
    store: "FeatureStore", retries: "Sequence[Retry]", acknowledged: Callable[[int], None] = lambda _: None
) -> None:
    """Clears the failure marks of the keys, then sends; each is acknowledged by the broker when this returns.

    Args:
        acknowledged: told how many more requests the broker has.

    Raises:
        RetryStopped: the broker did not take all of them.
        StoreUnavailable: a mark could not be cleared.
        KafkaUnavailable: Kafka does not answer.
    """
    from feature_repo.failures import CassandraFailureMarks
    from feature_repo.session import connect
    from materializer.dead_letter_actions import send_again
    from materializer.process import CLOSE_SECONDS, kafka_reached, open_producer, topics_of

    servers, _ = topics_of(store)
    marks = CassandraFailureMarks(connect(store), store.config.online_store.keyspace, store.project)
    with kafka_reached(servers):
        producer = open_producer(servers)
    try:
        send_again(retries, producer=producer, marks=marks, acknowledged=acknowledged)
    finally:
        producer.close(timeout=CLOSE_SECONDS)
