"""kafka-python's consumer, repaired."""

from typing import Any

from kafka import KafkaConsumer


class ResumingConsumer(KafkaConsumer):  # type: ignore[misc]
    """A `KafkaConsumer` that always goes on with partitions that were paused and resumed.

    kafka-python 3.0.12 sets aside what it has fetched of a paused partition, and takes it up again only when no other
    batch is in line. But a batch that is used up stays in line until the next one comes. Where none comes, a resumed
    partition was seen to wait for ever, though neither paused nor at its end.
    """

    def poll(self, timeout_ms: float = 0, max_records: int | None = None, update_offsets: bool = True) -> Any:
        """As in the stock consumer."""
        if not self._fetcher._next_partition_records:  # used up: it is falsy then
            self._fetcher._next_partition_records = None
        return super().poll(timeout_ms, max_records, update_offsets)
