"""How much of one view's keys another view has, and how much it will never have: what a migration waits for."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.session import StoreUnavailable
from materializer.archive import ArchiveUnavailable
from materializer.backfill_input import InputError, Row

CHUNK = 2000  # keys that the archive is asked for at once


class CoverageUnknown(Exception):
    """It cannot be told how much is covered; the message says why."""


class ArchivedKeys(Protocol):
    """What is asked of the archive: `materializer.archive.FeastArchive`."""

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]: ...


class Marks(Protocol):
    """What is asked of the failure marks: `feature_repo.failures.FailureMarks`."""

    def read(self, view: str, keys: Sequence[str]) -> dict[str, str]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How much of N keys has an embedding.

    Attributes:
        keys, covered: how many there are, and how many have one.
        failed: how many cannot be embedded: they are marked, or no keys of the view.
        weight, covered_weight, failed_weight: the same, each key counted as often as it was looked up.
    """

    keys: int
    covered: int
    failed: int
    weight: int
    covered_weight: int
    failed_weight: int

    @property
    def share(self) -> float:
        """Of the weight, 0 to 1; 1 where there are no keys: nothing would be missing."""
        return self.covered_weight / self.weight if self.weight else 1.0

    @property
    def reachable(self) -> float:
        """What `share` is when all is embedded that did not fail."""
        return 1.0 - self.failed_weight / self.weight if self.weight else 1.0


def traffic(rows: Iterable[Row | None], spec: EncoderSpec) -> Counter[str]:
    """How often each canonical key was looked up, of rows of one look-up each; rows without a valid key count nothing.

    Raises:
        InputError: a part of the input cannot be read, or no row has a valid key.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        if row is not None and not row.problem:
            try:
                counts[canonical_key(spec, row.key)] += 1
            except KeyRefused:
                continue
    if not counts:
        raise InputError(f"the traffic holds no key that {spec.view} could have")
    return counts


class CoverageMeter:
    """Measures again and again how much of a file's keys is in a view; a key that was found is not looked up again.

    Args:
        keys: a parquet file with a column `key`, of `feature_repo.offline.newest`.
        spec: the view's encoder.
        marks: which keys are known to fail.
        weights: key → how often it was looked up; None: all count the same.

    Raises:
        CoverageUnknown: none of the keys was ever looked up.
    """

    def __init__(
        self,
        keys: Path,
        spec: EncoderSpec,
        archive: ArchivedKeys,
        marks: Marks,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        self._keys = keys
        self._spec = spec
        self._archive = archive
        self._marks = marks
        weighed = [
            1 if weights is None else weights.get(key, 0) for key in (k for chunk in self._chunks() for k in chunk)
        ]
        self._weights: NDArray[np.int64] = np.array(weighed, dtype=np.int64)  # (N,)
        self._found = np.zeros(len(weighed), dtype=np.bool_)  # (N,)
        if len(weighed) and not self._weights.any():
            raise CoverageUnknown("none of the look-ups in the traffic is of a key that the old view has")

    def measure(self, report: Callable[[int], None] = lambda _: None) -> Coverage:
        """Looks up the keys that were not found before.

        Args:
            report: told the number of keys that are done.

        Raises:
            CoverageUnknown: the online store did not answer.
        """
        start, failed = 0, np.zeros(len(self._found), dtype=np.bool_)  # anew each time: a mark has an end
        for chunk in self._chunks():
            at = start + np.flatnonzero(~self._found[start : start + len(chunk)])
            self._found[at], failed[at] = self._there([chunk[i - start] for i in at])
            start += len(chunk)
            report(start)
        return Coverage(
            keys=len(self._found),
            covered=int(self._found.sum()),
            failed=int(failed.sum()),
            weight=int(self._weights.sum()),
            covered_weight=int(self._weights[self._found].sum()),
            failed_weight=int(self._weights[failed].sum()),
        )

    def _there(self, keys: Sequence[str]) -> tuple[list[bool], list[bool]]:
        """Whether each key is archived, and whether it never will be."""
        # The two views may drop different parameters of a URL.
        canonical: list[str | None] = []
        for key in keys:
            try:
                canonical.append(canonical_key(self._spec, key))
            except KeyRefused:
                canonical.append(None)
        try:
            archived = self._archive.archived(self._spec, [key for key in canonical if key is not None])
            missing = [key for key in canonical if key is not None and key not in archived]
            marked = self._marks.read(self._spec.view, missing) if missing else {}
        except (ArchiveUnavailable, StoreUnavailable) as error:
            raise CoverageUnknown(str(error)) from error
        return [key in archived for key in canonical], [key is None or key in marked for key in canonical]

    def _chunks(self) -> Iterable[list[str]]:
        with pq.ParquetFile(self._keys) as file:
            for batch in file.iter_batches(CHUNK, columns=["key"]):
                yield batch.column(0).to_pylist()
