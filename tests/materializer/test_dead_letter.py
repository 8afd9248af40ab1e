from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from materializer.dead_letter import KEPT_BYTES, DeadLetter
from materializer.messages import EmbedRequest


def record(value: bytes | None, headers: list[tuple[str, bytes | None]] | None = None) -> Any:
    return ConsumerRecord("requests", 3, 0, 17, 0, 1, None, value, headers or [], None, None, None, None)


@given(st.text(), st.text(), st.text(), st.text(max_size=100), st.integers(0, 2**62), st.binary())
def test_a_dead_letter_survives_its_message(
    view: str, key: str, reason: str, detail: str, requested_at: int, value: bytes
) -> None:
    request = EmbedRequest(view=view, key=key, requested_at=requested_at, attempt=4)
    letter = DeadLetter.of(record(value), request, reason=reason, detail=detail, failed_at=99)
    assert (letter.topic, letter.partition, letter.offset, letter.value) == ("requests", 3, 17, value)
    assert DeadLetter.from_record(record(letter.value, list(letter.headers))) == letter


@given(st.lists(st.tuples(st.sampled_from(["attempt", "offset", "reason", "x"]), st.none() | st.binary(max_size=30))))
def test_any_record_can_be_read_as_a_dead_letter(headers: list[tuple[str, bytes | None]]) -> None:
    letter = DeadLetter.from_record(record(None, headers))
    assert letter.value == b""
    assert letter.attempt >= 0


def test_a_message_too_long_for_the_topic_is_kept_in_part() -> None:
    letter = DeadLetter.of(
        record(b"x" * (KEPT_BYTES + 1)), None, reason="MalformedMessage", detail="y" * 9999, failed_at=1
    )
    assert (len(letter.value), letter.size) == (KEPT_BYTES, KEPT_BYTES + 1)
    assert len(letter.detail) == 2000


def test_half_a_surrogate_pair_in_a_detail_does_not_stop_a_dead_letter() -> None:
    letter = DeadLetter.of(record(b""), None, reason="MalformedMessage", detail="\ud800", failed_at=1)
    assert ("detail", b"?") in letter.headers
