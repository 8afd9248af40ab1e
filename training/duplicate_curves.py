"""Precision against recall, over all thresholds, in pictures."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")  # files only: no display is needed
from matplotlib import pyplot as plt

from training.duplicate_threshold import precision_recall

Scored = tuple[NDArray[np.floating], NDArray[np.bool_]]  # similarities (P,) of pairs, and whether they are duplicates
MOST_POINTS = 2000  # of a line


def draw_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Scored]],
    *,
    chosen: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    title: str = "",
) -> None:
    """Writes a picture: a panel for each set of pairs, in it a line for each way to score them.

    Args:
        chosen: recalls and precisions (C,) of thresholds to be marked, in every panel.
    """
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(1.5 + 3.8 * across, 1.2 + 3.2 * down), squeeze=False, layout="constrained"
    )
    for each in axes.flat[len(panels) :]:
        each.set_axis_off()
    for each, (name, ways) in zip(axes.flat, panels.items(), strict=False):
        for way, (similarity, label) in ways.items():
            _, precision, recall = precision_recall(similarity, label)
            shown = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), MOST_POINTS)).astype(int))
            each.step(recall[shown], precision[shown], where="pre", label=way)
        if chosen is not None:
            each.plot(*chosen, "ko", label="the threshold")
        each.set(title=name, xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.flat[0].legend(loc="lower left", fontsize="small")
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
