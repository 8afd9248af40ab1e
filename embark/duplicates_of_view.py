"""Duplicates within one view, and the threshold of a view from labelled pairs."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.markup import escape

from embark.console import out
from embark.duplicates_folder import CURVE, GROUPS, PAGE, THRESHOLD, Asked, write_after
from embark.duplicates_page import Shown, shown_groups, write_page
from embark.duplicates_run import (
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
from training.duplicate_threshold import Labelled, calibrate
from training.duplicates import Duplicates, DuplicatesError, centre_of, find_duplicates, to_unit_length


def search_view(wanted: Wanted, view: str, folder: Path, threshold: float | None) -> None:
    """Groups the items of a view, writes and prints them."""
    spec = registered_encoder(wanted.settings, view)
    asked = Asked.of(folder / THRESHOLD, spec, threshold)
    before = earlier(wanted, folder, [asked])
    items = read_embeddings(open_store(wanted.settings.repo), spec)
    sought = centred(items, asked, before.views[0] if before else None)
    with comparing(len(items)) as advance:
        found = find_duplicates(
            items,
            asked.threshold,
            texts=spec.modality == "text",
            before=before.searched if before else None,
            exact_items=wanted.exact_items,
            advance=advance,
        )
    write_after(folder, [sought], found.searched, found.table)
    groups = shown_groups(found.table, wanted.show)
    summary = summary_of(asked, found)
    write_page(
        folder / PAGE,
        Shown(
            views=[asked],
            search=summary["search"],
            tiles={
                "items": summary["items"],
                "groups": summary["groups"],
                "items of the same content as another": summary["same_content"],
                "items near another": summary["near"] + summary["same_embedding"],
            },
            groups=groups,
            count=found.groups,
            headings=["key"],
            cosines={"cosine": "similarity"},
            picture="key",
            pictures=pictures_of(wanted, groups, "key") if wanted.pictures and spec.modality == "image" else {},
        ),
    )
    summary |= {"parquet": str(folder / GROUPS), "page": str(folder / PAGE)}
    if wanted.as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    print_rows(found.table, ["similarity"], 14, "key")
    out.print(
        f"{view}: {found.groups} groups of {found.table.num_rows} among {found.items} items"
        f" ({found.new} searched, {how(found.found)}); see {escape(str(folder / PAGE))}"
    )
    print_warnings([asked])


def summary_of(asked: Asked, found: Duplicates) -> dict[str, Any]:
    """What a run tells, in figures."""
    kinds = found.table["kind"].to_pylist()
    return {
        **asked.told(),
        "items": found.items,
        "searched": found.new,
        "groups": found.groups,
        "in_groups": found.table.num_rows,
        "same_content": kinds.count("same content"),
        "same_embedding": kinds.count("same embedding"),
        "near": kinds.count("near"),
        "search": told_search(found.found),
    }


def calibrate_view(wanted: Wanted, view: str, folder: Path, labelled: Path, precision: float) -> None:
    """Learns the threshold, keeps it, and draws the curve that it was taken from."""
    from training.duplicate_curves import draw_curves  # matplotlib takes half a second

    spec = registered_encoder(wanted.settings, view)
    try:
        pairs = pd.read_parquet(labelled) if labelled.suffix == ".parquet" else pd.read_csv(labelled)
    except (OSError, ValueError) as error:
        raise DuplicatesError(f"{labelled} cannot be read: {error}") from error
    items = read_embeddings(open_store(wanted.settings.repo), spec)
    centre = centre_of(items.vectors)
    to_unit_length(items.vectors, centre)
    compared = Labelled.of(items, spec, pairs)
    kept = calibrate(spec, compared, centre, precision)
    kept.write(folder / THRESHOLD)
    draw_curves(
        folder / CURVE,
        {f"{kept.pairs} labelled pairs": {view: (compared.similarity, compared.label)}},
        chosen=(np.array([kept.recall]), np.array([kept.precision])),
    )
    told = {
        name: getattr(kept, name)
        for name in ("view", "fingerprint", "similarity", "target", "precision", "recall", "pairs", "duplicates")
    } | {"missing": kept.missing, "file": str(folder / THRESHOLD), "curve": str(folder / CURVE)}
    if wanted.as_json:
        click.echo(json.dumps(told, indent=2))
        return
    out.print(
        f"{folder / THRESHOLD}: a cosine of {kept.similarity:.4f} and more is a duplicate, with precision"
        f" {kept.precision:.3f} and recall {kept.recall:.3f} on {kept.pairs} labelled pairs, {kept.missing} of others"
        f" are not archived; {folder / CURVE} has the curve; next: embark duplicates --view {view}"
    )
