import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.directory import UnknownView
from feature_repo.embeddings import OOV_KEY, Status, embedding_id, oov_vector
from serving.archive import DownMarks, DownRows, memory_archive
from tests.serving.fakes import IMAGE, SPECS, TEXT, Parts

URL = "http://a.example/x.jpg"


def test_an_archived_key_is_a_hit_with_its_vector_time_and_id() -> None:
    parts = Parts()
    identity = parts.add(TEXT, "cat", 2.0, event_time=123)
    answer = parts.archive.lookup(TEXT.view, ["cat"])
    assert list(answer.status) == [Status.HIT]
    assert answer.vectors.tolist() == [[2.0] * 4]
    assert (answer.event_time[0], answer.embedding_id[0]) == (123, identity)
    assert parts.requests.requests == []


def test_a_missing_key_is_answered_oov_and_asked_for() -> None:
    parts = Parts()
    answer = parts.archive.lookup(TEXT.view, ["cat"])
    assert list(answer.status) == [Status.OOV]
    assert not answer.vectors.any()
    assert answer.embedding_id[0] == embedding_id(TEXT.view, OOV_KEY, 0, oov_vector(TEXT.dim))
    assert parts.requests.requests == [(TEXT.view, "cat")]


def test_a_marked_key_is_failed_with_its_reason_and_not_asked_for() -> None:
    parts = Parts()
    parts.marks.mark(IMAGE.view, {URL: "NotFound: the server answers 404"})
    answer = parts.archive.lookup(IMAGE.view, [URL])
    assert list(answer.status) == [Status.FAILED]
    assert answer.failures == {0: "NotFound: the server answers 404"}
    assert parts.requests.requests == []


def test_a_mark_never_hides_an_embedding() -> None:
    parts = Parts()
    parts.add(IMAGE, URL, 1.0)
    parts.marks.mark(IMAGE.view, {URL: "NotFound: gone by now"})
    assert list(parts.archive.lookup(IMAGE.view, [URL]).status) == [Status.HIT]


@pytest.mark.parametrize("bad", ["", "  ", "no-url", "ftp://a.example/x", "http://a.example/" + "x" * 9000])
def test_a_key_that_can_be_none_costs_only_itself_an_answer(bad: str) -> None:
    parts = Parts()
    parts.add(IMAGE, URL, 1.0)
    answer = parts.archive.lookup(IMAGE.view, [URL, bad])
    assert list(answer.status) == [Status.HIT, Status.FAILED]
    assert answer.failures[1].startswith("KeyRefused: ")
    assert parts.requests.requests == []


def test_different_spellings_of_one_key_are_asked_for_once_and_answered_alike() -> None:
    parts = Parts()
    answer = parts.archive.lookup(IMAGE.view, ["HTTP://A.example/x.jpg", URL, URL + "#top"])
    assert list(answer.status) == [Status.OOV] * 3
    assert parts.requests.requests == [(IMAGE.view, URL)]


def test_a_store_that_does_not_answer_makes_no_request_storm() -> None:
    parts = Parts()
    archive = memory_archive(SPECS, DownRows(), parts.marks, parts.requests)
    answer = archive.lookup(IMAGE.view, [URL, "no-url"])
    assert list(answer.status) == [Status.UNAVAILABLE, Status.FAILED]
    assert not answer.vectors.any()
    assert parts.requests.requests == []


def test_hits_are_served_though_the_marks_cannot_be_read() -> None:
    parts = Parts()
    parts.add(TEXT, "cat", 1.0)
    archive = memory_archive(SPECS, parts.rows, DownMarks(), parts.requests)
    assert list(archive.lookup(TEXT.view, ["dog", "cat"]).status) == [Status.UNAVAILABLE, Status.HIT]
    assert parts.requests.requests == []


def test_an_unknown_view_is_refused_with_those_known() -> None:
    with pytest.raises(UnknownView, match="photo__v1, tiny__v1"):
        Parts().archive.lookup("nope", ["x"])


def test_no_keys_are_answered_with_an_empty_matrix() -> None:
    answer = Parts().archive.lookup(TEXT.view, [])
    assert answer.vectors.shape == (0, 4)
    assert len(answer) == 0


@given(st.lists(st.sampled_from(["known", "marked", "new", "\0"])))
def test_order_and_status_hold_for_any_mix_of_keys(keys: list[str]) -> None:
    parts = Parts()
    parts.add(TEXT, "known", 3.0)
    parts.marks.mark(TEXT.view, {"marked": "DecodeError: planted"})
    expected = {"known": Status.HIT, "marked": Status.FAILED, "new": Status.OOV, "\0": Status.FAILED}
    answer = parts.archive.lookup(TEXT.view, keys)
    assert [Status(s) for s in answer.status] == [expected[key] for key in keys]
    assert [bool(v.any()) for v in answer.vectors] == [key == "known" for key in keys]
    assert parts.requests.requests == [(TEXT.view, "new")] * ("new" in keys)
    assert set(answer.failures) == {i for i, key in enumerate(keys) if expected[key] == Status.FAILED}
