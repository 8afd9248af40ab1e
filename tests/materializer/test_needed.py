import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.embeddings import RowVersion
from materializer.deletions import AFTER
from materializer.messages import EmbedRequest
from materializer.needed import needed

TIMES = st.integers(0, 20)
REQUESTS = st.builds(EmbedRequest, view=st.just("v"), key=st.just("k"), requested_at=TIMES, refresh=st.booleans())
VERSIONS = st.none() | st.builds(
    RowVersion, event_time=TIMES, created_time=TIMES, embedding_id=st.none() | st.integers(1, 9)
)


@given(REQUESTS, TIMES, VERSIONS)
def test_what_is_embedded_wins_over_what_is_online_and_is_not_embedded_again(
    request: EmbedRequest, asked_at: int, version: RowVersion | None
) -> None:
    todo = needed(request, asked_at, version)
    if todo is None:
        return
    assert todo.requested_at >= request.requested_at
    assert version is None or todo.requested_at > version.event_time
    own = RowVersion(event_time=todo.requested_at, created_time=asked_at + 100, embedding_id=1)
    assert needed(request, asked_at, own) is None


@given(REQUESTS, TIMES, st.integers(1, 9))
def test_only_a_refresh_recomputes_what_is_there(request: EmbedRequest, asked_at: int, id_: int) -> None:
    there = RowVersion(event_time=5, created_time=5, embedding_id=id_)
    assert (needed(request, asked_at, there) is not None) == (request.refresh and request.requested_at > 5)


@pytest.mark.parametrize(
    ("refresh", "requested_at", "asked_at", "event_time"),
    [
        (False, 4, 9, None),  # a late replay
        (False, 5, 9, None),
        (False, 6, 9, 6),  # asked before the deletion, of a later event
        (True, 6, 9, None),  # a refresh of all keys that was under way
        (False, 4, 11, 5 + AFTER),
        (True, 4, 11, 5 + AFTER),
        (False, 8, 11, 8),
    ],
)
def test_after_a_deletion(refresh: bool, requested_at: int, asked_at: int, event_time: int | None) -> None:
    deletion = RowVersion(event_time=5, created_time=10, embedding_id=None)
    todo = needed(EmbedRequest(view="v", key="k", requested_at=requested_at, refresh=refresh), asked_at, deletion)
    assert (None if todo is None else todo.requested_at) == event_time
