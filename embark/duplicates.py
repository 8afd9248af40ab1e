"""`embark duplicates`: which items of a view, or of an image and a text view together, are the same, or nearly."""

from pathlib import Path

import click

from embark.console import AS_JSON, one_line_errors
from embark.settings import Settings

SHARE = click.FloatRange(0, 1, min_open=True)
A_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OF_PAIRS = (
    *("image_view", "text_view", "items", "item_column", "image_column", "text_column"),
    *("image_threshold", "text_threshold"),
)
OF_A_VIEW = ("view", "threshold", "labelled", "precision")


@click.command()
@click.option("--view", help="The registered encoder, as mobilenet_v3_small__v1.")
@click.option("--image-view", help="With --text-view: an encoder of pictures. Items must be near in both.")
@click.option("--text-view", help="With --image-view: an encoder of texts.")
@click.option(
    "--items", type=A_FILE, help="With both: csv or parquet, an item a row: its name, picture's URL and text."
)
@click.option("--item-column", default="item", show_default=True, help="Of --items: the name.")
@click.option("--image-column", default="image_url", show_default=True, help="Of --items: the key of --image-view.")
@click.option("--text-column", default="text", show_default=True, help="Of --items: the key of --text-view.")
@click.option("--threshold", type=SHARE, help="Least cosine; the calibrated one else.")
@click.option("--image-threshold", type=SHARE, help="Least cosine of --image-view; its calibrated one else.")
@click.option("--text-threshold", type=SHARE, help="Least cosine of --text-view; its calibrated one else.")
@click.option(
    "--calibrate",
    "labelled",
    type=A_FILE,
    help="Learn the threshold of --view from labelled pairs (csv or parquet: left, right, duplicate), and keep it.",
)
@click.option("--precision", type=SHARE, default=0.99, show_default=True, help="That --calibrate is to reach.")
@click.option("--out", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder; duplicates/VIEW else.")
@click.option("--anew", is_flag=True, help="Search everything, not only what is new since the last run.")
@click.option(
    "--exact-items", type=click.IntRange(0), default=50_000, show_default=True, help="Up to which all are compared."
)
@click.option("--show", type=click.IntRange(0), default=200, show_default=True, help="Groups on the page.")
@click.option("--no-pictures", is_flag=True, help="Download nothing for the page.")
@click.option("--allow-network", "networks", multiple=True, metavar="NETWORK", help="As for `embark retina`.")
@AS_JSON
@click.pass_context
@one_line_errors
def duplicates(
    context: click.Context,
    view: str | None,
    image_view: str | None,
    text_view: str | None,
    items: Path | None,
    item_column: str,
    image_column: str,
    text_column: str,
    threshold: float | None,
    image_threshold: float | None,
    text_threshold: float | None,
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
    """Group the items of VIEW that are the same, or whose embeddings are near; or that are so in two views at once.

    \b
    embark duplicates --view mobilenet_v3_small__v1
    embark duplicates --view mobilenet_v3_small__v1 --calibrate labelled.csv --precision 0.99
    embark duplicates --view text_lstm__v1 --threshold 0.97 --json
    embark duplicates --image-view mobilenet_v3_small__v1 --text-view text_lstm__v1 --items items.csv

    Reads history; needs no server. Writes groups.parquet and groups.html. A later run searches new items only.
    docs/duplicates.md tells how a threshold is calibrated, and how much an approximate search misses.
    """
    from embark.duplicates_run import Wanted

    check_options(context)
    wanted = Wanted(
        settings=context.ensure_object(Settings),
        anew=anew,
        exact_items=exact_items,
        show=show,
        pictures=not no_pictures,
        networks=networks,
        as_json=as_json,
    )
    if view is not None:
        from embark.duplicates_of_view import calibrate_view, search_view

        folder = folder or Path("duplicates") / view
        if labelled is not None:
            calibrate_view(wanted, view, folder, labelled, precision)
        else:
            search_view(wanted, view, folder, threshold)
        return

    from embark.duplicates_of_pair import Columns, search_pair

    assert image_view is not None and text_view is not None and items is not None  # noqa: S101, PT018 - checked above
    search_pair(
        wanted,
        image_view,
        text_view,
        items,
        Columns(item=item_column, image=image_column, text=text_column),
        (image_threshold, text_threshold),
        folder or Path("duplicates") / f"{image_view}+{text_view}",
    )


def check_options(context: click.Context) -> None:
    """Raises:
    click.UsageError: options of one way to search stand beside those of the other, or some are lacking.
    """
    flags = {p.name: p.opts[0] for p in context.command.params if p.name}
    source = click.core.ParameterSource.DEFAULT
    given = {name for name in flags if context.get_parameter_source(name) not in (None, source)}
    if "view" in given:
        strange = [flags[name] for name in OF_PAIRS if name in given]
        if strange:
            raise click.UsageError(
                f"--view searches one view: {', '.join(strange)} belong to --image-view and --text-view"
            )
        if "labelled" in given and "threshold" in given:
            raise click.UsageError("--calibrate learns the threshold: leave out --threshold")
        return
    lacking = [flags[name] for name in ("image_view", "text_view", "items") if name not in given]
    if len(lacking) == 3:
        raise click.UsageError("give --view, or --image-view, --text-view and --items")
    if lacking:
        raise click.UsageError(f"to search two views at once, give {' and '.join(lacking)}, too")
    strange = [flags[name] for name in OF_A_VIEW if name in given]
    if strange:
        raise click.UsageError(
            f"{', '.join(strange)} is for one --view: thresholds are calibrated view by view, and given by"
            " --image-threshold and --text-threshold"
        )
