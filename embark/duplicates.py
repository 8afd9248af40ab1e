"""`embark duplicates`: which items of a view are the same, or nearly."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embark.console import AS_JSON, err, one_line_errors, out, printable
from embark.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from encoders.spec import EncoderSpec
    from training.archived_items import ArchivedItems
    from training.duplicates import Duplicates

UNCALIBRATED = 0.95
IN_MEMORY = 512 << 20  # bytes of vectors; more lie in a file that is mapped
SHOWN_ROWS = 12
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Which threshold a run has: given, calibrated, or neither."""

    threshold: float
    calibrated: bool
    centre: "NDArray[np.float32] | None"  # that was calibrated with


@click.command()
@click.option("--view", required=True, help="The registered encoder, as mobilenet_v3_small__v1.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), help="Least cosine; the calibrated one else.")
@click.option(
    "--calibrate",
    "labelled",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Learn the threshold from labelled pairs (csv or parquet: left, right, duplicate), and keep it.",
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="That --calibrate is to reach.",
)
@click.option("--out", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder; duplicates/VIEW else.")
@click.option("--anew", is_flag=True, help="Search everything, not only what is new since the last run.")
@click.option(
    "--exact-items", type=click.IntRange(0), default=50_000, show_default=True, help="Up to which all are compared."
)
@click.option("--show", type=click.IntRange(0), default=200, show_default=True, help="Groups on the page.")
@click.option("--no-pictures", is_flag=True, help="Download nothing for the page.")
@click.option("--allow-network", "networks", multiple=True, metavar="NETWORK", help="As for `embark retina`.")
@AS_JSON
@click.pass_obj
@one_line_errors
def duplicates(
    settings: Settings,
    view: str,
    threshold: float | None,
    labelled: Path | None,
    precision: float,
    folder: Path | None,
    anew: bool,
    exact_items: int,
    show: int,
    no_pictures: bool,
    networks: tuple[str, ...],
    as_json: bool,
) -> None:
    """Group the items of VIEW that are the same, or whose embeddings are near.

    \b
    embark duplicates --view mobilenet_v3_small__v1
    embark duplicates --view mobilenet_v3_small__v1 --calibrate labelled.csv --precision 0.99
    embark duplicates --view text_lstm__v1 --threshold 0.97 --json

    Reads history; needs no server. Writes groups.parquet and groups.html. A later run searches new items only.
    docs/duplicates.md tells how a threshold is calibrated, and how much an approximate search misses.
    """
    from embark.duplicates_folder import GROUPS, PAGE, THRESHOLD, read_before, write_after
    from embark.duplicates_page import shown_groups, write_page
    from embark.local_encoders import registered_encoder
    from embark.repo import open_store
    from training.archived_items import read_items
    from training.duplicates import DuplicatesError, centre_of, find_duplicates, to_unit_length
    from training.near_pairs import TooManyPairs
    from training.vectors import MatrixPlace

    spec = registered_encoder(settings, view)
    folder = folder or Path("duplicates") / view
    before = None if anew or labelled else read_before(folder, spec)
    asked = None if labelled else asked_for(folder / THRESHOLD, spec, threshold)
    with err.status(f"reading the embeddings of {view}"):
        items = read_items(open_store(settings.repo), spec, MatrixPlace(limit=IN_MEMORY))
    if not len(items):
        raise DuplicatesError(f"the archive holds nothing of {view} yet: look its items up, or backfill them")
    if asked is None:
        assert labelled is not None  # noqa: S101
        learn(items, spec, labelled, precision, folder / THRESHOLD, as_json)
        return
    if before is not None and not before.fits(asked.threshold, asked.centre):
        before = None  # pairs between the two thresholds were not kept
    centre = before.centre if before else asked.centre if asked.centre is not None else centre_of(items.vectors)
    to_unit_length(items.vectors, centre)
    with Progress(*COLUMNS, console=err, transient=True) as bar:
        task = bar.add_task(f"comparing {len(items)} items", total=None)
        try:
            found = find_duplicates(
                items,
                asked.threshold,
                texts=spec.modality == "text",
                before=before.searched if before else None,
                exact_items=exact_items,
                advance=lambda done: bar.update(task, advance=done),
            )
        except TooManyPairs as error:
            raise DuplicatesError(str(error)) from error
    write_after(folder, spec, asked.threshold, centre, found.searched, found.table)
    groups = shown_groups(found.table, show)
    pictures = {} if no_pictures or spec.modality != "image" else pictures_of(settings, networks, groups)
    summary = summary_of(spec, asked, found)
    write_page(folder / PAGE, spec, summary, groups, pictures)
    summary |= {"parquet": str(folder / GROUPS), "page": str(folder / PAGE)}
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        print_summary(summary, found.table)


def asked_for(path: Path, spec: "EncoderSpec", threshold: float | None) -> Asked:
    """The threshold of a run.

    Raises:
        DuplicatesError: the one that was calibrated is of another encoder.
    """
    import numpy as np

    from training.duplicate_threshold import Threshold

    if threshold is None and path.exists():
        kept = Threshold.read(path, spec)
        return Asked(threshold=kept.similarity, calibrated=True, centre=np.array(kept.centre, dtype=np.float32))
    return Asked(threshold=UNCALIBRATED if threshold is None else threshold, calibrated=False, centre=None)


def learn(
    items: "ArchivedItems", spec: "EncoderSpec", labelled: Path, precision: float, path: Path, as_json: bool
) -> None:
    """Calibrates the threshold, and keeps it."""
    import pandas as pd

    from training.duplicate_threshold import calibrate
    from training.duplicates import DuplicatesError, centre_of, to_unit_length

    try:
        pairs = pd.read_parquet(labelled) if labelled.suffix == ".parquet" else pd.read_csv(labelled)
    except (OSError, ValueError) as error:
        raise DuplicatesError(f"{labelled} cannot be read: {error}") from error
    centre = centre_of(items.vectors)
    to_unit_length(items.vectors, centre)
    kept = calibrate(items, spec, pairs, centre, precision)
    kept.write(path)
    told = {
        name: getattr(kept, name)
        for name in ("view", "fingerprint", "similarity", "target", "precision", "recall", "pairs", "duplicates")
    } | {"missing": kept.missing, "file": str(path)}
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    out.print(
        f"{path}: a cosine of {kept.similarity:.4f} and more is a duplicate, with precision {kept.precision:.3f} and"
        f" recall {kept.recall:.3f} on {kept.pairs} labelled pairs, {kept.missing} of others are not archived;"
        f" next: embark duplicates --view {spec.view}"
    )


def pictures_of(settings: Settings, networks: tuple[str, ...], groups: "list[pa.Table]") -> dict[str, bytes]:
    """Key → a small JPEG, for what can be downloaded."""
    import asyncio

    from embark.duplicates_page import thumbnails
    from embark.parts import fetcher_of

    allowed = Settings.model_validate(settings.model_dump() | ({"fetch_networks": list(networks)} if networks else {}))
    keys = [key for group in groups for key in group["key"].to_pylist()]

    async def fetched() -> dict[str, bytes]:
        async with fetcher_of(allowed) as fetcher:
            return await thumbnails(fetcher, keys)

    with err.status(f"downloading {len(keys)} pictures for the page"):
        return asyncio.run(fetched())


def summary_of(spec: "EncoderSpec", asked: Asked, found: "Duplicates") -> dict[str, Any]:
    """What a run tells, in figures."""
    kinds = found.table["kind"].to_pylist()
    return {
        "view": spec.view,
        "fingerprint": spec.fingerprint,
        "pretrained": spec.pretrained,
        "threshold": asked.threshold,
        "calibrated": asked.calibrated,
        "items": found.items,
        "searched": found.new,
        "groups": found.groups,
        "in_groups": found.table.num_rows,
        "same_content": kinds.count("same content"),
        "same_embedding": kinds.count("same embedding"),
        "near": kinds.count("near"),
        "search": {
            "exact": found.found.exact,
            "recall": round(found.found.recall, 4),
            "recall_from_pairs": found.found.recall_from,
            "recall_from_planted": found.found.planted,
            "probes": found.found.probes,
            "lists": found.found.lists,
        },
    }


def print_summary(summary: dict[str, Any], table: "pa.Table") -> None:
    """The first groups, and one line."""
    for row in table.slice(0, SHOWN_ROWS).to_pylist():
        out.print(f"{row['group']:>5}  {row['similarity']:.3f}  {row['kind']:<14}  {escape(printable(row['key']))}")
    if table.num_rows > SHOWN_ROWS:
        out.print(f"… and {table.num_rows - SHOWN_ROWS} more")
    search = summary["search"]
    how = "all compared" if search["exact"] else f"approximate, recall {search['recall']:.3f}"
    out.print(
        f"{summary['view']}: {summary['groups']} groups of {summary['in_groups']} among {summary['items']} items"
        f" ({summary['searched']} searched, {how}); see {escape(summary['page'])}"
    )
    if not summary["calibrated"]:
        out.print(
            f"[yellow]the threshold {summary['threshold']} is not calibrated: --calibrate learns it from pairs[/]"
        )
    if not summary["pretrained"]:
        out.print("[yellow]the encoder is NOT pretrained: nearness of its embeddings says little[/]")
