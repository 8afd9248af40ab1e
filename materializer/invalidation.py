"""Removes keys everywhere: from history's readings, from look-ups, and from whatever caches what those answered."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from kafka.errors import KafkaError

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.embeddings import RowVersion
from feature_repo.failures import FailureMarks
from feature_repo.session import StoreUnavailable
from materializer.announcements import Announcement, Announcer
from materializer.archive import ArchiveUnavailable
from materializer.backfill import EXAMPLES, SHOWN_CHARACTERS, Refusal, chunks
from materializer.backfill_input import Row
from materializer.clock import Clock
from materializer.deletions import AFTER, Deletions

CHUNK = 2000  # keys whose deletions are one part of history


class InvalidationStopped(Exception):
    """Not all keys were removed; the message says why. The same command again removes the rest."""


class DeletingArchive(Protocol):
    """What an invalidation asks of the archive: `materializer.archive.FeastArchive`."""

    def versions(self, spec: EncoderSpec, keys: Sequence[str]) -> Mapping[str, RowVersion]: ...
    def append_deletions(self, spec: EncoderSpec, deletions: Deletions) -> None: ...
    def delete_online(self, spec: EncoderSpec, deletions: Deletions) -> None: ...


@dataclass(kw_only=True, slots=True)
class Removed:
    """What became of the keys.

    Attributes:
        removed: had an embedding, and have none now.
        before: had been removed before; told again.
        absent: had none; a failure mark, if there was one, is gone.
        refused: no valid keys.
        examples: the first of these.
        position: how far in the input, in its own units.
    """

    removed: int = 0
    before: int = 0
    absent: int = 0
    refused: int = 0
    examples: list[Refusal] = field(default_factory=list)
    position: int = 0


class Invalidation:
    """Removes keys of one view. Killed at any moment and run again, it ends the same.

    Args:
        clock: when keys are removed.
        stop: ends the run after the keys at hand.
    """

    def __init__(
        self,
        *,
        spec: EncoderSpec,
        archive: DeletingArchive,
        marks: FailureMarks,
        announcer: Announcer,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        self._spec = spec
        self._archive = archive
        self._marks = marks
        self._announcer = announcer
        self._clock = clock
        self._stop = stop
        self.removed = Removed()

    def run(self, rows: Iterable[Row | None], report: Callable[[Removed], None] = lambda _: None) -> Removed:
        """Removes the keys of these rows, some at a time, until they end or `stop` is set; what is counted is done.

        Args:
            report: shown the counts every now and then.

        Raises:
            InvalidationStopped: a server did not answer, or history cannot be written.
            InputError: a part of the input cannot be read.
        """
        for chunk in chunks(rows, CHUNK):
            keys: dict[str, None] = {}
            for row in chunk:
                try:
                    if row.problem:
                        raise KeyRefused(row.problem)
                    keys[canonical_key(self._spec, row.key)] = None
                except KeyRefused as error:
                    self._refuse(row, str(error))
            try:
                self._remove(list(keys))
            except (ArchiveUnavailable, StoreUnavailable, KafkaError) as error:
                raise InvalidationStopped(f"not all keys were removed, run it again: {error or repr(error)}") from error
            self.removed.position = chunk[-1].position if chunk else self.removed.position
            report(self.removed)
            if self._stop.is_set():
                break
        return self.removed

    def _refuse(self, row: Row, why: str) -> None:
        self.removed.refused += 1
        if len(self.removed.examples) < EXAMPLES:
            self.removed.examples.append(Refusal(row.number, row.key[:SHOWN_CHARACTERS], why))

    def _remove(self, keys: Sequence[str]) -> None:
        spec = self._spec
        # 1. what is there; a key without a row has none to remove
        versions = self._archive.versions(spec, keys)
        there = {key: version for key, version in versions.items() if not version.deleted}
        if there:
            deletions = Deletions(
                keys=tuple(there),
                event_time=np.array([version.event_time + AFTER for version in there.values()], dtype=np.int64),
                deleted_at=self._clock.now(),
            )
            # 2. history first: killed after it, the row is still online, and is found by the next run
            self._archive.append_deletions(spec, deletions)
            # 3. online: look-ups miss the keys
            self._archive.delete_online(spec, deletions)
        # 4. what failed before may be asked for again
        self._marks.clear(spec.view, keys)
        # 5. tell whoever keeps copies; those too whose row went in a run that was killed before it told
        self._announcer.announce(_announcement(spec.view, key, versions.get(key)) for key in keys)
        self.removed.removed += len(there)
        self.removed.before += len(versions) - len(there)
        self.removed.absent += len(keys) - len(versions)


def _announcement(view: str, key: str, version: RowVersion | None) -> Announcement:
    if version is None:
        return Announcement("invalidated", view, key, 0, 0)
    if version.embedding_id is None:
        return Announcement("invalidated", view, key, version.event_time - AFTER, 0)
    return Announcement("invalidated", view, key, version.event_time, version.embedding_id)
