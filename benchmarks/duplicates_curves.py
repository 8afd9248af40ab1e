"""Precision against recall of planted copies, in pictures: over all pairs, and for each kind of change."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.duplicate_curves import Scored, draw_curves


def draw(
    path: Path,
    similarity: Mapping[str, NDArray[np.floating]],
    family: NDArray[np.int64],
    change: Sequence[str],
    title: str,
) -> Path:
    """Writes the picture; its path.

    Args:
        similarity: (N, N) of each way to compare.
        family, change: (N,) what each shows or says, and how it was changed; "" for the original.
    """
    left, right = np.triu_indices(len(family), 1)
    same = family[left] == family[right]
    kinds = np.array(change)
    panels: dict[str, dict[str, Scored]] = {"all pairs": {}}
    for kind in dict.fromkeys(change):
        if kind:
            panels[f"{kind}, with its original"] = {}
    for way, scores in similarity.items():
        of_pairs = scores[left, right].astype(np.float64)
        panels["all pairs"][way] = (of_pairs, same)
        for kind in dict.fromkeys(change):
            if kind:
                # a copy of this kind with its original, among all pairs that are no copies of each other
                copy = same & (
                    ((kinds[left] == "") & (kinds[right] == kind)) | ((kinds[right] == "") & (kinds[left] == kind))
                )
                chosen = copy | ~same
                panels[f"{kind}, with its original"][way] = (of_pairs[chosen], same[chosen])
    draw_curves(path, panels, title=title)
    return path
