"""`embark reembed`: computes embeddings anew that are there; they are served as they are until then."""

from pathlib import Path

import click

from embark.backfill import KEY_COLUMN, PIPE, ask, registered
from embark.console import AS_JSON, one_line_errors
from embark.found_keys import found_keys
from embark.settings import Settings


@click.command()
@click.option("--view", required=True, help="Feature view of the encoder, as text_lstm__v1.")
@click.option(
    "--from",
    "path",
    metavar="FILE|-",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="The keys: a parquet or CSV file; - reads a pipe.",
)
@click.option("--all", "every", is_flag=True, help="All keys that the view's history holds.")
@click.option("--key-column", metavar="COLUMN", help="Of a file: URLs or texts; 'key' unless given.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Requests a second, at most.")
@click.option("--dry-run", is_flag=True, help="Send nothing, but count what would be sent.")
@click.option("--restart", is_flag=True, help="Begin anew, wherever an earlier run stopped.")
@AS_JSON
@click.pass_obj
@one_line_errors
def reembed(
    settings: Settings,
    view: str,
    path: Path | None,
    every: bool,
    key_column: str | None,
    rate: float | None,
    dry_run: bool,
    restart: bool,
    as_json: bool,
) -> None:
    """Compute embeddings anew, in place: for pictures that have changed under their URLs.

    Each becomes a new event, of now. Until KFC comes to it, behind what look-ups miss, the embedding that is there is
    served; it stays where its key cannot be embedded any more, and `embark dead-letters list` says why.

    \b
    embark reembed --view resnet18__v1 --all --rate 100
    embark reembed --view resnet18__v1 --from changed.csv --key-column url
    some-query | embark reembed --view text_lstm__v1 --from -

    A run that was stopped goes on where it stood; --all goes on with the keys that it had found then. Exits with 130 if
    it was stopped by Ctrl-C or SIGTERM. Another encoder is another view: see `embark migrate`.
    """
    import kafka  # noqa: F401 - before Feast, which from then on shows the deprecation warnings of every library

    from embark.repo import open_store

    if every == (path is not None):
        raise click.UsageError("which keys? Give --from FILE, or --all")
    if (every and key_column) or (path == PIPE and (key_column or restart)):
        raise click.UsageError("--key-column is for files, --restart for files and --all")
    store = open_store(settings.repo)
    spec = registered(store, view)
    states = settings.state.resolve() / "reembeds"
    # A dry run has keys of its own: those of a run that was stopped are still to be sent.
    keys = path or found_keys(store, spec, states, anew=restart or dry_run, use="dry run" if dry_run else "reembed")
    ask(
        store,
        spec,
        keys,
        key_column=key_column or KEY_COLUMN,
        states=states,
        rate=rate,
        dry_run=dry_run,
        restart=restart,
        refresh=True,
        show=lambda run: run.show(as_json),
    )
    if every:
        keys.unlink()  # all is sent: the next run finds them anew
