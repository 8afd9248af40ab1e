"""Which batches are given back unfinished: one, and all after it, since offsets are committed in order."""

import threading

from materializer.batch import Batch


class Abandonment:
    """Knows the first batch that was abandoned since the last rewind. Any thread may ask and tell."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._lock = threading.Lock()

    def reaches(self, batch: Batch) -> bool:
        """Whether a batch is abandoned, itself or after another."""
        first = self._first
        if first is not None and batch.number > first and not batch.abandoned:
            batch.abandoned = "one before them is"
        return bool(batch.abandoned)

    def begin(self, batch: Batch, why: str) -> None:
        """Abandons a batch, and with it those after it."""
        batch.abandoned = why
        with self._lock:
            self._first = batch.number if self._first is None else min(self._first, batch.number)

    def end(self) -> None:
        """What was abandoned is read again, and nothing that came after it is under way."""
        self._first = None
