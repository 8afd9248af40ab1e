"""Duplicates in an image and a text view at once: items that are near in both."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from embark.console import out
from embark.duplicates_folder import GROUPS, PAGE, THRESHOLD, Asked, write_after
from embark.duplicates_page import Shown, shown_groups, write_page
from embark.duplicates_run import (
    IN_MEMORY,
    Wanted,
    centred,
    comparing,
    earlier,
    how,
    pictures_of,
    print_rows,
    print_warnings,
    read_embeddings,
    told_search,
)
from embark.local_encoders import registered_encoder
from embark.repo import open_store
from embark.settings import Settings
from encoders.spec import EncoderSpec
from training.duplicates import NEAR, SAME_CONTENT, DuplicatesError
from training.item_table import read_item_table
from training.paired_duplicates import SAME_IMAGE, SAME_TEXT, PairedDuplicates, Side, find_paired_duplicates


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What the columns of the file of items are called."""

    item: str
    image: str
    text: str


def search_pair(
    wanted: Wanted,
    image_view: str,
    text_view: str,
    file: Path,
    columns: Columns,
    thresholds: tuple[float | None, float | None],
    folder: Path,
) -> None:
    """Groups the items of a file, writes and prints them. Calibrated thresholds are those of duplicates/VIEW."""
    specs = [encoder_of(wanted.settings, image_view, "image"), encoder_of(wanted.settings, text_view, "text")]
    asked = [
        Asked.of(Path("duplicates") / spec.view / THRESHOLD, spec, threshold)
        for spec, threshold in zip(specs, thresholds, strict=True)
    ]
    before = earlier(wanted, folder, asked)
    table = read_item_table(file, item=columns.item, image=columns.image, text=columns.text)
    store = open_store(wanted.settings.repo)
    sides, sought = [], []
    for at, each in enumerate(asked):
        items = read_embeddings(store, each.spec)
        sought.append(centred(items, each, before.views[at] if before else None))
        sides.append(Side(spec=each.spec, items=items, threshold=each.threshold))
    with comparing(len(table)) as advance:
        found = find_paired_duplicates(
            table,
            sides[0],
            sides[1],
            IN_MEMORY,
            before=before.searched if before else None,
            exact_items=wanted.exact_items,
            advance=advance,
        )
    if not found.items:
        raise DuplicatesError(
            f"none of the {len(table)} items of {file} has both embeddings: {found.no_image} lack that of {image_view},"
            f" {found.no_text} that of {text_view}; backfill the views from it"
        )
    write_after(folder, sought, found.searched, found.table)
    groups = shown_groups(found.table, wanted.show)
    summary = summary_of(asked, found)
    image_key, text_key = (spec.join_key for spec in specs)
    write_page(
        folder / PAGE,
        Shown(
            views=asked,
            search=summary["search"],
            tiles={
                "items with both embeddings": found.items,
                "groups": found.groups,
                "items of the same content as another": summary["same_content"],
                "items near another": summary["same_image"] + summary["same_text"] + summary["near"],
            },
            groups=groups,
            count=found.groups,
            headings=["item", text_key, image_key],
            cosines={"picture": "image_similarity", "text": "text_similarity"},
            picture=image_key,
            pictures=pictures_of(wanted, groups, image_key) if wanted.pictures else {},
        ),
    )
    summary |= {"parquet": str(folder / GROUPS), "page": str(folder / PAGE)}
    if wanted.as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    print_rows(found.table, ["image_similarity", "text_similarity"], 21, "item")
    out.print(
        f"{image_view} and {text_view}: {found.groups} groups of {found.table.num_rows} among {found.items} items"
        f" ({found.new} searched, {how(found.found)}; {found.no_image} without the picture's embedding and"
        f" {found.no_text} without the text's are left out); see {escape(str(folder / PAGE))}"
    )
    print_warnings(asked)


def encoder_of(settings: Settings, view: str, modality: str) -> EncoderSpec:
    """Raises:
    click.BadParameter: the encoder is of another modality.
    UnknownView: no such encoder.
    """
    spec = registered_encoder(settings, view)
    if spec.modality != modality:
        raise click.BadParameter(
            f"{view} is an encoder of {spec.modality}s, not of {modality}s", param_hint=f"--{modality}-view"
        )
    return spec


def summary_of(asked: list[Asked], found: PairedDuplicates) -> dict[str, Any]:
    """What a run tells, in figures."""
    kinds = found.table["kind"].to_pylist()
    return {
        **{f"{each.spec.modality}_view": each.told() for each in asked},
        "items": found.items,
        "no_image": found.no_image,
        "no_text": found.no_text,
        "searched": found.new,
        "groups": found.groups,
        "in_groups": found.table.num_rows,
        "same_content": kinds.count(SAME_CONTENT),
        "same_image": kinds.count(SAME_IMAGE),
        "same_text": kinds.count(SAME_TEXT),
        "near": kinds.count(NEAR),
        "search": told_search(found.found),
    }
