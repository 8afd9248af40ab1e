import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from materializer.messages import MAX_MESSAGE_BYTES, EmbedRequest, MalformedMessage, Topics

MICROS = st.integers(min_value=0, max_value=2**63 - 1)
REQUESTS = st.builds(
    EmbedRequest,
    view=st.text(max_size=50),
    key=st.text(max_size=200),
    requested_at=MICROS,
    attempt=st.integers(0, 10),
    priority=st.sampled_from(["live", "bulk"]),
    not_before=MICROS,
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
FIELDS = st.sampled_from(["view", "key", "requested_at", "attempt", "priority", "not_before", "other"])


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
        (b"[" * 50_000, "no JSON"),
        (b"[]", "list"),
        (b"{}", "'view' is missing"),
        (b'{"view": "v", "key": 3, "requested_at": 1}', "'key' is int"),
        (b'{"view": "v", "key": "k", "requested_at": true}', "'requested_at' is bool"),
        (b'{"view": "v", "key": "k", "requested_at": -1}', "63-bit"),
        (b'{"view": "v", "key": "k", "requested_at": 9223372036854775808}', "63-bit"),
        (b'{"view": "v", "key": "\\ud800", "requested_at": 1}', "surrogate"),
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
    assert topics.all == ("a.b", "a.b.bulk", "a.b.retry", "a.b.dead-letters")
    assert topics.group == "a.b.materializer"


def test_topics_survive_the_loss_of_one_replica_and_keep_what_waits() -> None:
    configs = Topics(live="a").configs(partitions=12, replication=3)
    assert configs["a"]["num_partitions"] == configs["a.retry"]["num_partitions"] == 12
    assert {c["replication_factor"] for c in configs.values()} == {3}
    assert {c["configs"]["min.insync.replicas"] for c in configs.values()} == {"2"}
    assert int(configs["a"]["configs"]["retention.ms"]) == 7 * 24 * 3600 * 1000
    assert int(configs["a.dead-letters"]["configs"]["retention.ms"]) == 30 * 24 * 3600 * 1000
