"""`embark invalidate`: removes keys everywhere."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.progress import Progress

from embark.backfill import COLUMNS, INTERRUPTED, KEY_COLUMN, PIPE, STDIN, registered
from embark.console import AS_JSON, err, one_line_errors, out, printable
from embark.settings import Settings

if TYPE_CHECKING:
    import threading

    from materializer.backfill_input import Input
    from materializer.invalidation import Removed


@click.command()
@click.argument("keys", nargs=-1, metavar="[KEY]…")
@click.option("--view", required=True, help="Feature view of the encoder, as text_lstm__v1.")
@click.option(
    "--from",
    "path",
    metavar="FILE|-",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="The keys: a parquet or CSV file; - reads a pipe.",
)
@click.option("--key-column", metavar="COLUMN", help="Of a file: URLs or texts; 'key' unless given.")
@AS_JSON
@click.pass_obj
@one_line_errors
def invalidate(
    settings: Settings, keys: tuple[str, ...], view: str, path: Path | None, key_column: str | None, as_json: bool
) -> None:
    """Remove KEYs: look-ups answer them as OOV, and ask for them again as for any new input.

    History keeps what was served, so that it can still be found by its embedding id, and notes the removal. What was
    asked for before does not bring a key back; what is asked for afterwards does.

    \b
    embark invalidate --view resnet18__v1 https://example.com/a.jpg
    embark invalidate --view resnet18__v1 --from removed.csv --key-column url

    Safe to repeat: where it was stopped, the same command removes the rest. To compute embeddings anew without a gap,
    see `embark reembed`.
    """
    import kafka  # noqa: F401 - before Feast, which from then on shows the deprecation warnings of every library

    from embark.parts import stopped_by_signals
    from embark.repo import open_store
    from feature_repo.failures import CassandraFailureMarks
    from feature_repo.online_rows import FeastOnlineRows
    from materializer.announcements import Announcer
    from materializer.archive import FeastArchive
    from materializer.clock import SystemClock
    from materializer.invalidation import Invalidation
    from materializer.process import CLOSE_SECONDS, create_topics, kafka_reached, open_producer, topics_of

    if bool(keys) == (path is not None):
        raise click.UsageError("which keys? Name KEYs, or give --from FILE")
    if key_column and path in (None, PIPE):
        raise click.UsageError("--key-column is for files")
    store = open_store(settings.repo)
    spec = registered(store, view)
    servers, topics = topics_of(store)
    with stopped_by_signals() as stop, given(keys, path, key_column or KEY_COLUMN, stop) as found:
        rows = FeastOnlineRows(store)
        marks = CassandraFailureMarks.of(store)
        create_topics(servers, topics)
        with kafka_reached(servers):
            producer = open_producer(servers)
        work = Invalidation(
            spec=spec,
            archive=FeastArchive(store, rows),
            marks=marks,
            announcer=Announcer(producer, topics),
            clock=SystemClock(),
            stop=stop,
        )
        try:
            with Progress(*COLUMNS, console=err, transient=True, disable=not err.is_terminal) as progress:
                task = progress.add_task(escape(view), total=found.size, counts="")
                work.run(
                    found.rows,
                    lambda done: progress.update(
                        task, completed=done.position, counts=f"{done.removed} removed, {done.absent} absent"
                    ),
                )
        finally:
            producer.close(timeout=CLOSE_SECONDS)
            show(view, work.removed, as_json)
    if stop.is_set():
        err.print("stopped: the same command removes the rest")
        raise click.exceptions.Exit(INTERRUPTED)


@contextmanager
def given(keys: tuple[str, ...], path: Path | None, key_column: str, stop: "threading.Event") -> "Iterator[Input]":
    """The keys that were named, or those of a file or pipe."""
    from materializer.backfill_input import Input, Row, open_file, open_pipe

    if path is None:
        yield Input((Row(number=n, position=n, key=key) for n, key in enumerate(keys, 1)), len(keys))
    elif path == PIPE:
        yield open_pipe(STDIN, stop)
    else:
        with open_file(path, key_column=key_column) as found:
            yield found


def show(view: str, done: "Removed", as_json: bool) -> None:
    """What became of the keys, as text or JSON."""
    counts = asdict(done)
    del counts["position"]
    if as_json:
        click.echo(json.dumps({"view": view} | counts, indent=2))
        return
    out.print(
        f"{done.removed} removed, {done.before} removed before, {done.absent} had no embedding, {done.refused} refused",
        markup=False,
    )
    for example in done.examples:
        out.print(f"  row {example.row}: {example.key!r}: {printable(example.why)}", markup=False)
    if len(done.examples) < done.refused:
        out.print(f"  and {done.refused - len(done.examples)} more")
