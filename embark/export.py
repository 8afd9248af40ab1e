"""`embark export`: a trained component becomes an encoder."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from embark.console import AS_JSON, one_line_errors, out
from embark.settings import Settings


@click.command()
@click.argument("run", metavar="CHECKPOINT", type=click.Path(exists=True, path_type=Path))
@click.option("--component", type=click.Choice(["image", "text"]), required=True, help="What becomes an encoder.")
@click.option("--name", required=True, help="Of the encoder: lower-case words joined by underscores.")
@click.option("--version", required=True, help="Of the encoder: v1, v2, …")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder; that of CHECKPOINT.")
@click.option("--declare", "add", is_flag=True, help="Add the declaration to the feature repo's catalog.py.")
@AS_JSON
@click.pass_obj
@one_line_errors
def export(
    settings: Settings,
    run: Path,
    component: str,
    name: str,
    version: str,
    folder: Path | None,
    add: bool,
    as_json: bool,
) -> None:
    """Make an encoder of the image or text network that CHECKPOINT, a run or its model.pt, has learned.

    \b
    embark export runs/ctr --component image --name ctr_image --version v1 --declare
    embark apply
    embark backfill --view ctr_image__v1 --from items.parquet --key-column image_url
    embark rank runs/ctr/on_ctr_image__v1 …

    Writes the network's file and, beside it, the model that looks its embeddings up instead: both together compute what
    the whole did. Retina reads the file at the path in the declaration: put it where all of them see it (--to).
    """
    from training.export import declare
    from training.export import export as export_component
    from training.saved import load_model

    exported = export_component(
        load_model(run), component, name, version, folder or (run if run.is_dir() else run.parent)
    )
    if add:
        declare(settings.repo / "catalog.py", exported.declaration)
    if as_json:
        click.echo(json.dumps(asdict(exported), indent=2, default=str))
        return
    where = f"declared in {settings.repo / 'catalog.py'}" if add else "to be declared in catalog.py:"
    out.print(f"{exported.encoder}: {where}", f"\n{exported.declaration}\n", sep="\n", markup=False)
    out.print(f"next: embark apply, embark backfill --view {exported.view}; then rank with {exported.model}")
