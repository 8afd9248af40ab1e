"""Which worker reads which partitions: cooperative-sticky, a topic at a time."""

from types import SimpleNamespace
from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment


class PerTopicStickyAssignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Kafka's cooperative-sticky assignor, balancing each topic by itself.

    The stock one balances the number of partitions over all topics: with two workers it was seen to give one of them
    all live partitions and the other all retry partitions, so that one did all the work.
    """

    name = "cooperative-sticky-per-topic"

    def assign(self, cluster: Any, members: Any) -> dict[str, Any]:
        """The assignment of each member, by its id; called in the worker that leads the group."""
        shares: dict[str, dict[str, list[int]]] = {member.member_id: {} for member in members}
        for topic in sorted({topic for member in members for topic in member.metadata.topics}):
            subscribed = [_for_topic(member, topic) for member in members if topic in member.metadata.topics]
            for member_id, assignment in super().assign(cluster, subscribed).items():
                partitions = sorted(tp.partition for tp in assignment.partitions())
                if partitions:
                    shares[member_id][topic] = partitions
        return {
            member_id: ConsumerProtocolAssignment(self.version, sorted(share.items()), b"")
            for member_id, share in shares.items()
        }


def _for_topic(member: Any, topic: str) -> SimpleNamespace:
    """The member as if it had subscribed to one topic alone: what the stock assignor reads of it."""
    owned = [tp for tp in getattr(member.metadata, "owned_partitions", None) or () if tp.topic == topic]
    metadata = SimpleNamespace(topics=[topic], owned_partitions=owned, generation_id=member.metadata.generation_id)
    return SimpleNamespace(member_id=member.member_id, metadata=metadata)
