import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from materializer.messages import (
    ANNOUNCED_TOGETHER,
    MAX_DEAD_LETTER_BYTES,
    MAX_MESSAGE_BYTES,
    Announcement,
    EmbedRequest,
    MalformedMessage,
    Topics,
    decode_announcements,
    encode_announcements,
)

MICROS = st.integers(min_value=0, max_value=2**63 - 1)
REQUESTS = st.builds(
    EmbedRequest,
    view=st.text(max_size=50),
    key=st.text(max_size=200),
    requested_at=MICROS,
    attempt=st.integers(0, 10),
    priority=st.sampled_from(["live", "bulk"]),
    not_before=MICROS,
    refresh=st.booleans(),
)


@given(REQUESTS)
def test_a_request_survives_its_message(request: EmbedRequest) -> None:
    assert EmbedRequest.decode(request.encode()) == request


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_request_or_malformed(message: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        request = EmbedRequest.decode(message)
        assert EmbedRequest.decode(request.encode()) == request


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["view", "key", "requested_at", "attempt", "priority", "not_before", "refresh", "other"])


@given(st.dictionaries(FIELDS, JSON | st.text(max_size=5) | MICROS))
def test_arbitrary_json_is_a_request_or_malformed(fields: dict[str, object]) -> None:
    with contextlib.suppress(MalformedMessage):
        request = EmbedRequest.decode(json.dumps(fields).encode())
        assert request.partition_key
        assert EmbedRequest.decode(request.encode()) == request


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (None, "no value"),
        (b"\xff\xfe\xff", "no JSON"),
        (b"[" * 100_000, "bytes, "),
        (b"[" * 50_000, "Expected `object`, got `array`"),
        (b'{"other": ' + b"[" * 50_000, "no JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `view`"),
        (b'{"view": "v", "key": 3, "requested_at": 1}', "Expected `str`, got `int` - at `\\$.key`"),
        (b'{"view": "v", "key": "k", "requested_at": true}', "got `bool` - at `\\$.requested_at`"),
        (b'{"view": "v", "key": "k", "requested_at": -1}', "Expected `int` >= 0"),
        (b'{"view": "v", "key": "k", "requested_at": 9223372036854775808}', "Expected `int` <= 9223372036854775807"),
        (b'{"view": "v", "key": "\\ud800", "requested_at": 1}', "surrogate"),
        (b'{"view": "v", "key": "k", "requested_at": 1, "priority": "high"}', "Invalid enum value 'high'"),
        (b'{"view": "v", "key": "' + b"k" * MAX_MESSAGE_BYTES + b'", "requested_at": 1}', "allowed"),
    ],
)
def test_a_malformed_message_says_what_is_wrong(message: bytes | None, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        EmbedRequest.decode(message)


def test_a_retry_keeps_its_event_time_and_counts_the_attempt() -> None:
    request = EmbedRequest(view="v", key="k", requested_at=5)
    again = request.again(not_before=9)
    assert (again.requested_at, again.attempt, again.not_before) == (5, 1, 9)
    assert again.partition_key == request.partition_key


def test_all_topics_hang_on_the_live_one() -> None:
    topics = Topics(live="a.b")
    assert topics.all == ("a.b", "a.b.bulk", "a.b.retry", "a.b.dead-letters", "a.b.embedded")
    assert topics.group == "a.b.materializer"


def test_topics_survive_the_loss_of_one_replica_and_keep_what_waits() -> None:
    configs = Topics(live="a").configs(partitions=12, replication=3)
    assert configs["a"]["num_partitions"] == configs["a.retry"]["num_partitions"] == 12
    assert {c["replication_factor"] for c in configs.values()} == {3}
    assert {c["configs"]["min.insync.replicas"] for c in configs.values()} == {"2"}
    assert int(configs["a"]["configs"]["retention.ms"]) == 7 * 24 * 3600 * 1000
    assert int(configs["a.dead-letters"]["configs"]["retention.ms"]) == 30 * 24 * 3600 * 1000
    assert int(configs["a.embedded"]["configs"]["retention.ms"]) == 3600 * 1000
    assert configs["a.embedded"]["num_partitions"] == 1  # one order for all readers


ANNOUNCEMENTS = st.builds(
    Announcement,
    kind=st.sampled_from(["embedded", "failed", "invalidated"]),
    view=st.sampled_from(["v", "w"]),
    key=st.text(max_size=20),
    event_time=MICROS,
    embedding_id=MICROS,
)


@given(st.lists(ANNOUNCEMENTS, max_size=2 * ANNOUNCED_TOGETHER))
def test_announcements_survive_their_messages_in_the_order_of_each_kind_and_view(announced: list[Announcement]) -> None:
    decoded = [each for message in encode_announcements(announced) for each in decode_announcements(message)]
    for kind, view in {(each.kind, each.view) for each in announced}:
        assert [a for a in decoded if (a.kind, a.view) == (kind, view)] == [
            a for a in announced if (a.kind, a.view) == (kind, view)
        ]
    assert len(decoded) == len(announced)


def test_a_full_message_of_the_longest_keys_is_within_what_the_topic_takes() -> None:
    longest = [Announcement("embedded", "v", "\1" * 8192, 2**63 - 1, 2**63 - 1)] * ANNOUNCED_TOGETHER
    (message,) = encode_announcements(longest)
    assert len(message) < MAX_DEAD_LETTER_BYTES * 0.9  # and what Kafka adds


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (None, "no value"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"kind": "moved", "view": "v"}', "Invalid enum value 'moved' - at `\\$.kind`"),
        (
            b'{"kind": "failed", "view": "v", "keys": ["k"], "event_times": [1]}',
            "missing required field `embedding_ids`",
        ),
        (
            b'{"kind": "failed", "view": "v", "keys": [1], "event_times": [1], "embedding_ids": [1]}',
            "Expected `str`, got `int` - at `\\$.keys",
        ),
        (b'{"kind": "failed", "view": "v", "keys": [], "event_times": [1], "embedding_ids": []}', "0 keys, 1 event"),
    ],
)
def test_a_malformed_announcement_says_what_is_wrong(message: bytes | None, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        decode_announcements(message)


@given(st.binary(max_size=100) | st.dictionaries(st.sampled_from(["kind", "view", "keys"]), JSON).map(json.dumps))
def test_arbitrary_bytes_are_announcements_or_malformed(message: bytes | str) -> None:
    with contextlib.suppress(MalformedMessage):
        decode_announcements(message if isinstance(message, bytes) else message.encode())
