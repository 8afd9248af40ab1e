"""What both ways to search for duplicates share: reading embeddings, telling how far they are, pictures."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore
from numpy.typing import NDArray
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embark.console import err, out, printable
from embark.duplicates_folder import Asked, Before, Sought, read_before
from embark.duplicates_page import thumbnails
from embark.parts import fetcher_of
from embark.settings import Settings
from encoders.spec import EncoderSpec
from training.archived_items import ArchivedItems, read_items
from training.duplicates import DuplicatesError, centre_of, to_unit_length
from training.near_pairs import NearPairs, TooManyPairs
from training.vectors import MatrixPlace

IN_MEMORY = MatrixPlace(limit=512 << 20)  # bytes of vectors; more lie in a file that is mapped
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
SHOWN_ROWS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """How a run searches and what it shows; see the options of the command."""

    settings: Settings
    anew: bool
    exact_items: int
    show: int
    pictures: bool
    networks: tuple[str, ...]
    as_json: bool


def earlier(wanted: Wanted, folder: Path, asked: Sequence[Asked]) -> Before | None:
    """The last run in the folder, where this one may go on with it.

    Raises:
        DuplicatesError: it was of other encoders.
    """
    before = None if wanted.anew else read_before(folder, [each.spec for each in asked])
    return before if before is not None and before.fits(asked) else None


def read_embeddings(store: FeatureStore, spec: EncoderSpec) -> ArchivedItems:
    """Raises:
    DuplicatesError: there are none.
    """
    with err.status(f"reading the embeddings of {spec.view}"):
        items = read_items(store, spec, IN_MEMORY)
    if not len(items):
        raise DuplicatesError(f"the archive holds nothing of {spec.view} yet: look its items up, or backfill them")
    return items


def centred(items: ArchivedItems, asked: Asked, before: Sought | None) -> Sought:
    """Takes the centre off the embeddings, in place: that of the search that is gone on with, else the calibrated one,
    else their mean."""
    centre: NDArray[np.float32]
    if before is not None:
        centre = np.array(before.centre, dtype=np.float32)
    else:
        centre = asked.centre if asked.centre is not None else centre_of(items.vectors)
    to_unit_length(items.vectors, centre)
    return Sought(
        view=asked.spec.view,
        fingerprint=asked.spec.fingerprint,
        threshold=asked.threshold,
        centre=centre.tolist(),
    )


@contextmanager
def comparing(count: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; told how many were searched.

    Raises:
        DuplicatesError: too many pairs are near.
    """
    with Progress(*COLUMNS, console=err, transient=True) as bar:
        task = bar.add_task(f"comparing {count} items", total=None)
        try:
            yield lambda done: bar.update(task, advance=done)
        except TooManyPairs as error:
            raise DuplicatesError(str(error)) from error


def pictures_of(wanted: Wanted, groups: Sequence[pa.Table], column: str) -> dict[str, bytes]:
    """Key → a small JPEG, for what can be downloaded."""
    allowed = wanted.settings.overridden({"fetch_networks": list(wanted.networks)})
    keys = [key for group in groups for key in group[column].to_pylist()]

    async def fetched() -> dict[str, bytes]:
        async with fetcher_of(allowed) as fetcher:
            return await thumbnails(fetcher, keys)

    with err.status(f"downloading {len(keys)} pictures for the page"):
        return asyncio.run(fetched())


def told_search(found: NearPairs) -> dict[str, object]:
    """How was searched, in figures."""
    return {
        "exact": found.exact,
        "recall": round(found.recall, 4),
        "recall_from_pairs": found.recall_from,
        "recall_from_planted": found.planted,
        "probes": found.probes,
        "lists": found.lists,
    }


def how(found: NearPairs) -> str:
    """The same in a few words."""
    return "all compared" if found.exact else f"approximate, recall {found.recall:.3f}"


def print_rows(table: pa.Table, cosines: Sequence[str], width: int, name: str) -> None:
    """The first rows: their group, columns of cosines, the kind in `width` characters, and the column `name`."""
    for row in table.slice(0, SHOWN_ROWS).to_pylist():
        near = "  ".join(f"{row[each]:.3f}" for each in cosines)
        out.print(f"{row['group']:>5}  {near}  {row['kind']:<{width}}  {escape(printable(row[name]))}")
    if table.num_rows > SHOWN_ROWS:
        out.print(f"… and {table.num_rows - SHOWN_ROWS} more")


def print_warnings(views: Sequence[Asked]) -> None:
    """What makes the groups doubtful."""
    for each in views:
        if not each.calibrated:
            out.print(
                f"[yellow]the threshold {each.threshold} of {each.spec.view} is not calibrated:"
                f" --view {each.spec.view} --calibrate learns it from pairs[/]"
            )
        if not each.spec.pretrained:
            out.print(f"[yellow]{each.spec.view} is NOT pretrained: nearness of its embeddings says little[/]")
