"""`embark evaluate`: what a trained model is worth, as figures and pictures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from embark.console import AS_JSON, err, one_line_errors, out
from embark.settings import Settings
from embark.train import archive_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from training.evaluate import Report

REPORT = "report.json"


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--on", "path", type=click.Path(path_type=Path), help="Impressions; data.test of the run's config.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder; RUN/evaluation.")
@click.option("--baselines", is_flag=True, help="Also train the model without image, and without text: takes its time.")
@AS_JSON
@click.pass_obj
@one_line_errors
def evaluate(
    settings: Settings, run: Path, path: Path | None, folder: Path | None, baselines: bool, as_json: bool
) -> None:
    """Evaluate the model of RUN on impressions that it has not seen.

    \b
    embark evaluate runs/ctr
    embark evaluate runs/ctr --baselines --json

    Log-loss, AUC (also within each context), calibration, likelihood and coverage of the density, for all impressions
    and for those with and without an OOV embedding; beside logistic regression on ids. Writes report.json and pictures.
    """
    from embark.training_progress import progress_bars
    from training.baselines import on_ids, trained_without
    from training.evaluate import evaluate as evaluate_model
    from training.impressions import read_impressions
    from training.plots import draw
    from training.prepare import held_out
    from training.saved import CHECKPOINT, load_model, read_whole

    trained = load_model(run)
    config = trained.config
    path = path or config.data.test
    archive = archive_of(settings, config)
    with progress_bars(err, quiet=as_json) as bars:
        impressions, examples = held_out(path, trained, archive, bars.pictures)
        others = {"logistic regression on ids": on_ids(trained, read_impressions(config.data.train), impressions)}
        if baselines:
            others |= trained_without(config, path, run / "baselines", archive, bars)
    curve = read_whole(run / CHECKPOINT)["progress"]["curve"] if (run / CHECKPOINT).exists() else []
    report = evaluate_model(trained, examples, others, curve)
    folder = folder or run / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(json.dumps(report.to_json(), indent=2))
    pictures = [str(picture) for picture in draw(report, folder)]
    if as_json:
        click.echo(json.dumps(report.to_json() | {"pictures": pictures}, indent=2))
        return
    show(report)
    out.print(f"wrote {folder / REPORT} and {', '.join(pictures)}")


def show(report: "Report") -> None:
    """A row for each slice, and for each baseline."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "impressions", "log-loss", "AUC", "AUC in contexts", "ECE", "density NLL", "90 % hold"):
        table.add_column(column, justify="left" if not column else "right")
    for name, each in report.slices.items():
        table.add_row(
            f"this model, {name}", *_clicks(each.of_clicks), *_figures(each.of_density, "nll", "coverage_90%")
        )
    for name, clicks in report.baselines.items():
        table.add_row(name, *_clicks(clicks))
    out.print(table)


def _clicks(clicks: "Mapping[str, float | None]") -> list[str]:
    return [f"{clicks['impressions']:.0f}", *_figures(clicks, "log_loss", "auc", "grouped_auc", "ece")]


def _figures(of: "Mapping[str, float | None]", *names: str) -> list[str]:
    values = [of[name] for name in names]
    return ["" if value is None else f"{value:.4f}" for value in values]
