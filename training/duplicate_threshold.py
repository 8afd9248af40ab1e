"""How near two embeddings of an encoder must be to be called duplicates: learned from labelled pairs, and kept."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from training.archived_items import ArchivedItems
from training.duplicates import DuplicatesError

LEFT, RIGHT, LABEL = "left", "right", "duplicate"
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """The least similarity at which labelled pairs are duplicates with the precision that was asked for.

    Attributes:
        view, fingerprint: of the encoder; it says nothing about another.
        similarity: the threshold, a cosine of vectors less `centre`.
        target, precision, recall: asked for, and what the labelled pairs have.
        pairs, duplicates: that were labelled, and of these how many are duplicates.
        missing: labelled pairs of which a key is not archived.
        centre: (dim,) what was taken off each vector.
    """

    view: str
    fingerprint: str
    similarity: float
    target: float
    precision: float
    recall: float
    pairs: int
    duplicates: int
    missing: int
    centre: Sequence[float]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self)))
        beside.replace(path)

    @classmethod
    def read(cls, path: Path, spec: EncoderSpec) -> "Threshold":
        """Raises:
        DuplicatesError: no threshold, or that of another encoder.
        """
        try:
            kept = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DuplicatesError(f"{path} holds no threshold: {error}") from error
        if (kept.view, kept.fingerprint) != (spec.view, spec.fingerprint):
            raise DuplicatesError(
                f"{path} was calibrated for {kept.view} with fingerprint {kept.fingerprint}, {spec.view} has"
                f" {spec.fingerprint}: distances of two encoders cannot be compared; calibrate anew with --calibrate"
            )
        return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Labelled pairs that are archived.

    Attributes:
        similarity: (P,) of each.
        label: (P,) whether it is a duplicate.
        missing: how many others are not archived.
    """

    similarity: NDArray[np.float32]
    label: NDArray[np.bool_]
    missing: int

    @classmethod
    def of(cls, items: ArchivedItems, spec: EncoderSpec, pairs: pd.DataFrame) -> Self:
        """Compares them.

        Args:
            items: their vectors are of unit length, less the centre.
            pairs: columns `left` and `right` (keys), `duplicate` (0 or 1). Label what the search would find, near
                misses above all: precision among easy pairs says nothing.

        Raises:
            DuplicatesError: columns are missing, or no pair is archived.
        """
        lacking = {LEFT, RIGHT, LABEL} - set(pairs.columns)
        if lacking:
            raise DuplicatesError(
                f"labelled pairs lack {', '.join(sorted(lacking))}; they have {', '.join(pairs.columns)}"
            )
        told = pairs[LABEL].astype(str).str.lower()
        if not told.isin([*YES, *NO]).all():
            raise DuplicatesError(f"the column {LABEL} holds 0 or 1")
        label = np.array(told.isin(YES), dtype=np.bool_)
        rows = [items.rows_of(spec, pairs[side].astype(str).tolist()) for side in (LEFT, RIGHT)]
        there = (rows[0] >= 0) & (rows[1] >= 0)
        if not label[there].any():
            raise DuplicatesError(
                f"of {len(pairs)} labelled pairs {int(there.sum())} are archived, and none of these is a duplicate"
            )
        similarity = np.einsum("ij,ij->i", items.vectors[rows[0][there]], items.vectors[rows[1][there]])
        return cls(similarity=similarity, label=label[there], missing=int((~there).sum()))


def calibrate(spec: EncoderSpec, labelled: Labelled, centre: NDArray[np.float32], target: float) -> Threshold:
    """The lowest threshold at which the labelled pairs above it are duplicates with at least the precision `target`.

    Args:
        centre: (dim,) that was taken off the vectors of the pairs.

    Raises:
        DuplicatesError: no threshold has that precision.
    """
    cut, precision, recall = precision_cut(labelled.similarity, labelled.label, target)
    return Threshold(
        view=spec.view,
        fingerprint=spec.fingerprint,
        similarity=cut,
        target=target,
        precision=precision,
        recall=recall,
        pairs=len(labelled.label),
        duplicates=int(labelled.label.sum()),
        missing=labelled.missing,
        centre=centre.tolist(),
    )


def precision_recall(
    similarity: NDArray[np.floating], label: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.float64], NDArray[np.float64]]:
    """Each threshold (T,) that tells pairs apart, the highest first; precision and recall of the pairs at or above it.

    Args:
        similarity, label: (P,) of pairs, of which some are duplicates.
    """
    order = np.argsort(-similarity, kind="stable")
    ordered, true = similarity[order], np.cumsum(label[order])
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # a threshold cannot part equal ones
    return ordered[last], true[last] / (last + 1), true[last] / true[-1]


def precision_cut(
    similarity: NDArray[np.floating], label: NDArray[np.bool_], target: float
) -> tuple[float, float, float]:
    """The lowest threshold with a precision of at least `target`, its precision and its recall.

    Args:
        similarity, label: (P,) of labelled pairs, of which some are duplicates.

    Raises:
        DuplicatesError: there is none.
    """
    thresholds, precision, recall = precision_recall(similarity, label)
    allowed = np.flatnonzero(precision >= target)
    if not len(allowed):
        raise DuplicatesError(
            f"no threshold has a precision of {target}: the nearest pairs reach {precision.max():.3f}"
        )
    at = int(allowed[-1])
    return float(thresholds[at]), float(precision[at]), float(recall[at])
