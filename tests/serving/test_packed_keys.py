from collections.abc import Sequence

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.embeddings import Status, all_missing, oov_zeros
from serving.drafts import Drafts
from serving.embark_pb2 import FLOAT16, FLOAT32, LookupRequest
from serving.hot_cache import HotCache
from serving.kernels import KEY_BYTES
from serving.key_table import KeyTable
from serving.limits import MAX_KEYS
from serving.packed_keys import FEW_BYTES, PackedKeys, Question
from serving.refusals import BadArgument
from tests.serving.fakes import TEXT, Clock

MANY = [f"some other key {i}" for i in range(60)]  # of more than FEW_BYTES together


def packed(keys: Sequence[str]) -> PackedKeys:
    """The keys in a request, as a server has them."""
    found = Question.of(LookupRequest(view=TEXT.view, keys=keys).SerializeToString()).keys
    assert isinstance(found, PackedKeys)
    return found


@settings(deadline=None)
@given(st.lists(st.text(max_size=300), max_size=20), st.sampled_from([FLOAT32, FLOAT16]))
def test_a_request_is_read_as_protobuf_reads_it(keys: list[str], precision: int) -> None:
    request = LookupRequest(view=TEXT.view, keys=[*keys, *MANY], precision=precision).SerializeToString()
    found = Question.of(request)
    assert isinstance(found.keys, PackedKeys)
    assert (found.view, list(found.keys), found.precision, found.size) == (
        TEXT.view,
        [*keys, *MANY],
        precision,
        len(request),
    )
    assert (found.keys[-1], list(found.keys[-2:])) == (MANY[-1], MANY[-2:])


@pytest.mark.parametrize(
    "pieces",
    [
        [LookupRequest(keys=MANY), LookupRequest(view="v")],
        [LookupRequest(view="v", keys=MANY[:30]), LookupRequest(precision=FLOAT16), LookupRequest(keys=MANY[30:])],
        [LookupRequest(view="x" * 200), LookupRequest(view="v", keys=MANY)],
        [LookupRequest(view="v", keys=[*MANY, "x" * 20_000])],
        [LookupRequest(view="v", keys=MANY * 40)],
        [LookupRequest(view="v", keys=MANY[:1])],
    ],
)
def test_requests_that_are_written_otherwise_are_left_to_protobuf(pieces: list[LookupRequest]) -> None:
    request = b"".join(piece.SerializeToString() for piece in pieces)
    found, expected = Question.of(request), LookupRequest.FromString(request)
    assert isinstance(found.keys, list)
    assert (found.view, found.keys, found.precision) == (expected.view, expected.keys, expected.precision)


@pytest.mark.parametrize("cut", [1, 2, 5, 700])
def test_what_is_cut_off_is_no_request(cut: int) -> None:
    request = LookupRequest(view="v", keys=[*MANY, "x" * 900]).SerializeToString()
    with pytest.raises(BadArgument, match="no LookupRequest"):
        Question.of(request[:-cut])


def test_a_key_that_is_no_text_is_refused_when_it_is_looked_at() -> None:
    request = LookupRequest(view="v", keys=[*MANY, "abc"]).SerializeToString().replace(b"abc", b"a\xffc")
    keys = Question.of(request).keys
    assert keys[0] == MANY[0]
    with pytest.raises(BadArgument, match="key 60 is no valid UTF-8"):
        keys[60]
    with pytest.raises(IndexError):
        keys[61]


def test_a_view_that_is_no_text_is_refused() -> None:
    request = LookupRequest(view="a view", keys=MANY).SerializeToString().replace(b"a view", b"a vi\xffw")
    with pytest.raises(BadArgument, match="no LookupRequest"):
        Question.of(request)


@given(st.data())
def test_any_bytes_are_a_request_or_refused(data: st.DataObject) -> None:
    request = bytearray(LookupRequest(view="v", keys=MANY).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        request[data.draw(st.integers(0, len(request) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Question.of(bytes(request))
        keys = list(found.keys)
    except BadArgument:
        with pytest.raises(DecodeError):
            LookupRequest.FromString(bytes(request))
        return
    expected = LookupRequest.FromString(bytes(request))
    assert (found.view, keys, found.precision) == (expected.view, list(expected.keys), expected.precision)


def test_more_keys_than_any_call_may_have_are_counted_all_the_same() -> None:
    assert FEW_BYTES < MAX_KEYS
    keys = ["k"] * (MAX_KEYS + 1)
    assert len(Question.of(LookupRequest(view="v", keys=keys).SerializeToString()).keys) == MAX_KEYS + 1


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fill", "missing", "failed", "spell", "embedded", "invalidated", "later"]),
            st.lists(st.integers(0, 59), min_size=1, max_size=12),
        ),
        max_size=12,
    )
)
def test_packed_keys_are_answered_as_strings_are(steps: list[tuple[str, list[int]]]) -> None:
    clock = Clock()
    cache = HotCache(TEXT, megabytes=0.015, seconds=100, clock=clock)  # 20 vectors
    # Keys of all lengths: nothing, those that end with a word, those that find has no room for, those of two bytes.
    lengths = [0, 1, 7, 8, 9, 31, 32, 33, 127, 128, 129, KEY_BYTES - 2, KEY_BYTES - 1, KEY_BYTES, KEY_BYTES + 1, 300]
    keys = [f"{i:02d}" + "ä"[: i % 2] + "x" * lengths[i % len(lengths)] for i in range(60)]
    spelled = [f" {key}" for key in keys]
    for moment, (step, numbers) in enumerate(steps):
        chosen = list(dict.fromkeys(keys[i] for i in numbers))
        if step == "fill":
            read = all_missing(oov_zeros(TEXT.view, TEXT.dim), len(chosen), Status.HIT)
            read.vectors[:, 0] = read.embedding_id[:] = [keys.index(key) for key in chosen]
            read.event_time[:] = moment
            cache.fill(chosen, read, began=cache.now())
        elif step == "spell":
            cache.spell((f" {key}", key) for key in chosen)
        elif step == "later":
            clock.now += numbers[0]
        elif step in ("missing", "failed"):
            cache.fill_missing(chosen, dict.fromkeys(chosen, "why") if step == "failed" else {}, began=cache.now())
        else:
            for key in chosen:
                if step == "embedded":
                    cache.embedded(key, moment, keys.index(key))
                else:
                    cache.invalidated(key, moment)
        asked = [*keys, *spelled, "", *keys[:3], *MANY]
        (one, missing), (other, gone) = cache.take(asked), cache.take(packed(asked))
        assert missing.tolist() == gone.tolist()
        assert one.status.tolist() == other.status.tolist()
        assert one.failures == other.failures
        assert one.embedding_id.tolist() == other.embedding_id.tolist()
        assert one.event_time.tolist() == other.event_time.tolist()
        assert np.array_equal(one.vectors, other.vectors)


def test_slots_are_found_by_their_last_name_until_they_are_forgotten() -> None:
    table = KeyTable(1000)
    for slot, key in enumerate(MANY):
        table.name(slot, "old " + key)
        table.name(slot, key)
    found, lost = table.find(packed([*MANY, "old " + MANY[0]]), 999)
    assert (found.tolist(), lost) == ([*range(60), 999], 1)
    table.forget(7)
    found, lost = table.find(packed(MANY), 999)
    assert (np.flatnonzero(found == 999).tolist(), lost) == ([7], 1)


def test_where_a_bucket_is_full_what_is_found_is_still_the_key() -> None:
    table = KeyTable(4)  # two buckets
    for slot, key in enumerate(MANY[:4] * 10):
        table.name(slot % 4, f"{slot} {key}")
    found, lost = table.find(packed([*(f"{slot} {MANY[slot % 4]}" for slot in range(40)), *MANY]), -1)
    assert lost == 96
    assert found[36:40].tolist() == [0, 1, 2, 3]


def test_a_draft_is_written_again_only_when_nobody_has_its_reply() -> None:
    drafts = Drafts()
    first, second = drafts.of(3, 2, "w"), drafts.of(3, 2, "w")  # of two calls that wait for the store
    assert first is not second
    reply = second.finished(second.room)
    assert drafts.of(3, 2, "w") is not second  # the reply is being sent
    third = drafts.of(3, 2, "w")
    sent = bytes(bytearray(third.finished(third.room)))
    assert drafts.of(3, 2, "w") is third
    third.room.failures[0] = "why"
    assert third.finished(third.room) != sent
    assert drafts.of(3, 2, "w") is not third
    assert len(reply) == len(sent)
