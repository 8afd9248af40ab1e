"""A report in pictures."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only: no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from training.evaluate import Report

SHARES = np.linspace(0.05, 0.95, 19)


def draw(report: Report, folder: Path) -> list[Path]:
    """Writes the pictures that there is something to show in; their paths."""
    drawn = {"calibration": _calibration, "coverage": _coverage, "clicks": _clicks}
    if report.curve:
        drawn["learning_curve"] = _learning_curve
    paths = []
    for name, onto in drawn.items():
        figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
        onto(axes, report)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def _calibration(axes: Axes, report: Report) -> None:
    most = 0.0
    for name, each in report.slices.items():
        axes.plot(
            each.calibration.predicted, each.calibration.seen, "o-", label=f"{name}, ECE {each.calibration.ece:.4f}"
        )
        most = max(most, float(each.calibration.predicted.max()), float(each.calibration.seen.max()))
    axes.plot([0, most], [0, most], "k:", label="calibrated")
    axes.set(xlabel="predicted CTR", ylabel="seen CTR", title="Calibration, in bins of equal impressions")
    axes.legend()


def _coverage(axes: Axes, report: Report) -> None:
    for name, each in report.slices.items():
        held = [(np.abs(each.rank_N - 0.5) <= share / 2).mean() for share in SHARES]
        axes.plot(SHARES, held, "o-", markersize=3, label=name)
    axes.plot([0, 1], [0, 1], "k:", label="as promised")
    axes.set(xlabel="an interval of so much probability …", ylabel="… holds so many", title="Coverage of the density")
    axes.legend()


def _clicks(axes: Axes, report: Report) -> None:
    losses = {"this model": report.slices["all"].of_clicks["log_loss"]}
    losses |= {name: each["log_loss"] for name, each in report.baselines.items()}
    values = [value for value in losses.values() if value is not None]
    axes.barh(list(losses), values)
    low, high = min(values), max(values)
    axes.set_xlim(low - 0.2 * (high - low + 1e-3), high + 0.2 * (high - low + 1e-3))
    axes.invert_yaxis()
    axes.set(xlabel="log-loss of an impression", title="Clicks")


def _learning_curve(axes: Axes, report: Report) -> None:
    epochs = [line["epoch"] for line in report.curve]
    for name, label in (("train_nll", "training"), ("valid_nll", "validation")):
        axes.plot(epochs, [line[name] for line in report.curve], "o-", label=label)
    axes.set(xlabel="epoch", ylabel="negative log-likelihood of an example", title="Learning curve")
    axes.legend()
