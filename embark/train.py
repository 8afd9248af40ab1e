"""`embark train`: trains the click-through-rate model."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embark.console import AS_JSON, err, one_line_errors, out
from embark.settings import Settings

if TYPE_CHECKING:
    from training.config import Config
    from training.inputs import Archived

INTERRUPTED = 130  # what shells answer for a command that Ctrl-C ended


@click.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--run", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run; runs/<CONFIG's name>."
)
@click.option("--restart", is_flag=True, help="Begin anew where the folder holds a run.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="EMBARK_DEVICE otherwise.")
@AS_JSON
@click.pass_obj
@one_line_errors
def train(
    settings: Settings, config_file: Path, run: Path | None, restart: bool, device: str | None, as_json: bool
) -> None:
    """Train the click-through-rate model that CONFIG (TOML) describes.

    \b
    embark train ctr.toml
    embark train ctr.toml --run runs/without-image --restart

    Whether image and text are learned or taken from the archive is one word each in CONFIG; docs/model.md tells of all
    settings. A run that was stopped, by Ctrl-C or by a crash, goes on exactly where it stood. TensorBoard's logs lie in
    the run's folder. Exits with 130 if it was stopped.
    """
    from embark.parts import stopped_by_signals
    from embark.training_progress import progress_bars
    from encoders.compute import choose_device
    from training.config import load_config
    from training.prepare import prepare
    from training.train import train as train_model

    config = load_config(config_file)
    run = run or Path("runs") / config_file.stem
    if restart and run.exists():
        _forget(run)
    with stopped_by_signals() as stop, progress_bars(err, quiet=as_json) as bars:
        material = prepare(config, archive_of(settings, config), bars.pictures)
        outcome = train_model(
            config,
            material,
            run,
            device=choose_device(device or settings.device),
            watch=bars,
            should_stop=stop.is_set,
        )
    if as_json:
        lines = [asdict(epoch) for epoch in outcome.curve]
        found = {"run": str(run), "stopped": outcome.stopped, "resumed_at": outcome.resumed_at, "epochs": lines}
        click.echo(json.dumps(found, indent=2))
    elif outcome.stopped:
        out.print(f"stopped; go on with: embark train {config_file} --run {run}")
    else:
        best = min(outcome.curve, key=lambda epoch: epoch.valid_nll)
        out.print(f"{run}: best in epoch {best.epoch}, validated {best.valid_nll:.4f}; next: embark evaluate {run}")
    if outcome.stopped:
        raise click.exceptions.Exit(INTERRUPTED)


def archive_of(settings: Settings, config: "Config") -> "Archived | None":
    """What reads the archived embeddings of a config; None where it names no view.

    Raises:
        ConfigError: a view that is not registered.
    """
    if not config.views:
        return None
    from embark.repo import open_store
    from training.archived import HistoryArchive

    return HistoryArchive.of(open_store(settings.repo), config)


def _forget(run: Path) -> None:
    """Removes what `embark train` wrote, and nothing else: the folder may be another one than was meant."""
    from training.saved import CHECKPOINT, MODEL, TENSORBOARD

    for name in (CHECKPOINT, MODEL):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
