from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from materializer.assignor import PerTopicStickyAssignor

TOPICS = {"live": 6, "retry": 6}


class Cluster:
    """Partitions of each topic, as kafka-python's metadata answers them."""

    def topics(self) -> set[str]:
        return set(TOPICS)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(TOPICS[topic]))


def member(name: str, owned: set[TopicPartition]) -> Any:
    partitions = [
        SimpleNamespace(topic=topic, partitions=sorted(p.partition for p in owned if p.topic == topic))
        for topic in sorted({p.topic for p in owned})
    ]
    metadata = SimpleNamespace(topics=list(TOPICS), owned_partitions=partitions, generation_id=-1)
    return SimpleNamespace(member_id=name, metadata=metadata)


def rebalance(owned: dict[str, set[TopicPartition]]) -> dict[str, set[TopicPartition]]:
    """Rounds until nothing moves; a partition is never given to one member before another has let it go."""
    for _ in range(4):
        members = [member(name, mine) for name, mine in owned.items()]
        given_out = {
            name: set(assignment.partitions())
            for name, assignment in PerTopicStickyAssignor().assign(Cluster(), members).items()
        }
        for name, mine in given_out.items():
            assert not any(mine & owned[other] for other in owned if other != name)
        if given_out == owned:
            return given_out
        owned = given_out
    raise AssertionError("partitions go on moving")


def test_a_second_worker_gets_half_of_each_topic() -> None:
    everything = {TopicPartition(topic, p) for topic, count in TOPICS.items() for p in range(count)}
    settled = rebalance({"first": everything, "second": set()})
    for mine in settled.values():
        assert sorted(p.topic for p in mine) == ["live"] * 3 + ["retry"] * 3


@given(st.lists(st.sampled_from("abcd"), min_size=12, max_size=12), st.sets(st.sampled_from("abcd"), min_size=1))
def test_whoever_is_there_shares_each_topic_evenly(owners: list[str], there: set[str]) -> None:
    everything = [TopicPartition(topic, p) for topic, count in TOPICS.items() for p in range(count)]
    owned: dict[str, set[TopicPartition]] = {name: set() for name in sorted(there)}
    for partition, owner in zip(everything, owners, strict=True):
        if owner in there:
            owned[owner].add(partition)
    settled = rebalance(owned)
    assert sorted(p for mine in settled.values() for p in mine) == sorted(everything)
    for topic in TOPICS:
        counts = [sum(p.topic == topic for p in mine) for mine in settled.values()]
        assert max(counts) - min(counts) <= 1
