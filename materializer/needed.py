"""Whether a request still has to be embedded, and as which event, where the archive holds something under its key."""

from dataclasses import replace

from feature_repo.embeddings import RowVersion
from materializer.deletions import AFTER
from materializer.messages import EmbedRequest


def needed(request: EmbedRequest, asked_at: int, version: RowVersion | None) -> EmbedRequest | None:
    """The request with the event time under which it is to be embedded; None where nothing is left to do.

    The same for each replay, until its own row is online; then None.

    Args:
        asked_at: when the broker took it in, microseconds since 1970.
        version: what is online under its key.
    """
    if version is None:
        return request
    if not version.deleted:
        # A refresh that finds its own row, or one of a later event, is a replay or has been overtaken.
        return request if request.refresh and version.event_time < request.requested_at else None
    if asked_at <= version.created_time and (request.refresh or request.requested_at <= version.event_time):
        return None  # of before the deletion: a late replay must not bring the key back, nor a refresh of all keys
    return replace(request, requested_at=max(request.requested_at, version.event_time + AFTER))
