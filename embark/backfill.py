"""`embark backfill`: asks for the embeddings of many keys before anybody looks them up."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from embark.console import AS_JSON, err, one_line_errors, out, printable
from embark.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoders.spec import EncoderSpec
    from materializer.backfill import ArchivedKeys, Tally
    from materializer.backfill_input import Input
    from materializer.backfill_state import StateFile
    from materializer.failures import Producer
    from materializer.messages import Topics

PIPE = Path("-")
STDIN = 0  # its descriptor
KEY_COLUMN = "key"
INTERRUPTED = 130  # what shells answer for a command that Ctrl-C ended
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),  # nothing where the end is not known
    TextColumn("{task.fields[counts]}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


@click.command()
@click.option("--view", required=True, help="Feature view of the encoder, as text_lstm__v1.")
@click.option(
    "--from",
    "path",
    required=True,
    metavar="FILE|-",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A parquet or CSV file; - reads a pipe.",
)
@click.option("--key-column", metavar="COLUMN", help="Of a file: URLs or texts; 'key' unless given.")
@click.option("--time-column", metavar="COLUMN", help="Of a file: when each key was published; now otherwise.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Requests a second, at most.")
@click.option("--dry-run", is_flag=True, help="Send nothing, but count what would be sent.")
@click.option("--restart", is_flag=True, help="Begin at the first row, wherever an earlier run of the file stopped.")
@AS_JSON
@click.pass_obj
@one_line_errors
def backfill(
    settings: Settings,
    view: str,
    path: Path,
    key_column: str | None,
    time_column: str | None,
    rate: float | None,
    dry_run: bool,
    restart: bool,
    as_json: bool,
) -> None:
    """Ask for the embeddings of many keys in advance.

    KFC embeds them while look-ups leave it time; keys that have an embedding are not asked for.

    \b
    embark backfill --view text_lstm__v1 --from titles.csv --key-column title --time-column published
    embark backfill --view resnet18__v1 --from items.parquet --key-column url --rate 100
    some-query | embark backfill --view text_lstm__v1 --from -

    A line of a pipe is a key, or a key, a tab and a time. Times are ISO 8601, in UTC unless they say otherwise.

    A run of a file that was stopped goes on where it stood, if file and options are the same; after one that came to
    the end, the next begins anew. Exits with 130 if it was stopped by Ctrl-C or SIGTERM.
    """
    import kafka  # noqa: F401 - before Feast, which from then on shows the deprecation warnings of every library

    from embark.repo import open_store

    if path == PIPE and (key_column or time_column or restart):
        raise click.UsageError("--key-column, --time-column and --restart are for files: a pipe has none of these")
    store = open_store(settings.repo)
    ask(
        store,
        registered(store, view),
        path,
        key_column=key_column or KEY_COLUMN,
        time_column=time_column,
        states=settings.state.resolve() / "backfills",
        rate=rate,
        dry_run=dry_run,
        restart=restart,
        show=lambda run: run.show(as_json),
    )


def registered(store: "FeatureStore", view: str, option: str = "--view") -> "EncoderSpec":
    """The encoder of a view, as registered now; an error of that option where there is none."""
    from feature_repo.directory import UnknownView
    from feature_repo.views import encoder_specs

    specs = encoder_specs(store, allow_cache=False)
    if view not in specs:
        raise click.BadParameter(str(UnknownView(view, specs)), param_hint=option)
    return specs[view]


def ask(
    store: "FeatureStore",
    spec: "EncoderSpec",
    path: Path,
    *,
    key_column: str,
    time_column: str | None = None,
    states: Path,
    rate: float | None = None,
    dry_run: bool = False,
    restart: bool = False,
    refresh: bool = False,
    show: "Callable[[Run], None]" = lambda run: None,
) -> "Run":
    """Asks for the embeddings of the keys in a file or pipe; see `Backfill` and `opened`.

    Args:
        show: told what became of it, also where it ended with an error.

    Raises:
        click.exceptions.Exit: it was stopped by a signal.
        BackfillStopped, InputError, KafkaUnavailable: as they say.
    """
    from embark.parts import stopped_by_signals
    from feature_repo.online_rows import FeastOnlineRows
    from materializer.archive import FeastArchive
    from materializer.process import CLOSE_SECONDS, create_topics, kafka_reached, open_producer, topics_of

    servers, topics = topics_of(store)
    with (
        stopped_by_signals() as stop,
        opened(
            path,
            key_column=key_column,
            time_column=time_column,
            states=states,
            view=spec.view,
            servers=servers,
            topics=topics,
            restart=restart,
            stop=stop,
        ) as source,
    ):
        archive = FeastArchive(store, FeastOnlineRows(store))
        producer = None
        if not dry_run:
            create_topics(servers, topics)
            with kafka_reached(servers):
                producer = open_producer(servers)
        run = Run(view=spec.view, topic=topics.bulk, dry=dry_run, resumed_after=source.skipped)
        try:
            send(
                run,
                source,
                spec=spec,
                topics=topics,
                producer=producer,
                archive=archive,
                stop=stop,
                rate=rate,
                refresh=refresh,
            )
        finally:
            if producer is not None:
                producer.close(timeout=CLOSE_SECONDS)
            show(run)
    if run.stopped:
        raise click.exceptions.Exit(INTERRUPTED)
    return run


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What is read.

    Attributes:
        given: its rows, less those that were skipped.
        skipped: rows that an earlier run has done.
        state: where it is remembered how far a file has been done; None for a pipe.
    """

    given: "Input"
    skipped: int
    state: "StateFile | None"


@contextmanager
def opened(
    path: Path,
    *,
    key_column: str,
    time_column: str | None,
    states: Path,
    view: str,
    servers: str,
    topics: "Topics",
    restart: bool,
    stop: threading.Event,
) -> Iterator[Source]:
    """A file from where an earlier run of it stopped, or a pipe.

    Raises:
        InputError: it cannot be read as asked, or what is known of an earlier run cannot.
    """
    from materializer.backfill_input import InputError, open_file, open_pipe
    from materializer.backfill_state import Job, StateFile

    if path == PIPE:
        yield Source(given=open_pipe(STDIN, stop), skipped=0, state=None)
        return
    try:
        job = Job.of(
            path, key_column=key_column, time_column=time_column, view=view, servers=servers, topic=topics.bulk
        )
        state = StateFile(states, job)
        skipped = 0 if restart else state.load() or 0
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    if skipped:
        err.print(f"goes on after row {skipped}, where an earlier run stopped; --restart begins at the first one")
    with open_file(path, key_column=key_column, time_column=time_column, skip=skipped) as given:
        yield Source(given=given, skipped=skipped, state=state)


@dataclass(kw_only=True, slots=True)
class Run:
    """What is told of a backfill.

    Attributes:
        dry: nothing was sent; the counts are what would have been.
        resumed_after: rows that an earlier run had done.
        stopped: a signal came before the end.
        complete: all rows have been read.
    """

    view: str
    topic: str
    dry: bool
    resumed_after: int
    stopped: bool = False
    complete: bool = False
    tally: "Tally | None" = None

    def show(self, as_json: bool) -> None:
        """Prints it; nothing where nothing was begun."""
        if self.tally is None:
            return
        counts = asdict(self.tally)
        del counts["position"]
        if as_json:
            told: dict[str, Any] = {
                "view": self.view,
                "topic": self.topic,
                "dry_run": self.dry,
                "resumed_after": self.resumed_after,
                "complete": self.complete,
            }
            click.echo(json.dumps(told | counts, indent=2))
            return
        out.print(
            f"{self.tally.read} read: {self.tally.archived} archived before, {self.tally.duplicates} duplicates,"
            f" {self.tally.refused} refused, {self.tally.sent} {'would be ' if self.dry else ''}sent to {self.topic}",
            markup=False,
        )
        for example in self.tally.examples:
            out.print(f"  row {example.row}: {example.key!r}: {printable(example.why)}", markup=False)
        if len(self.tally.examples) < self.tally.refused:
            out.print(f"  and {self.tally.refused - len(self.tally.examples)} more")


def send(
    run: Run,
    source: Source,
    *,
    spec: "EncoderSpec",
    topics: "Topics",
    producer: "Producer | None",
    archive: "ArchivedKeys",
    stop: threading.Event,
    rate: float | None,
    refresh: bool = False,
) -> None:
    """Sends what is to be read, with a bar on standard error, and notes in `run` what became of it.

    A file that was done to its end is forgotten: the next run goes over all of it again, and asks for what is not
    archived by then.

    Args:
        producer: None for a dry run, which leaves what is known of earlier runs as it is.

    Raises:
        BackfillStopped, InputError: see `Backfill.run`; what was done before is in `run` all the same.
    """
    from materializer.backfill import Backfill, BackfillStopped
    from materializer.clock import SystemClock

    with Progress(*COLUMNS, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(escape(spec.view), total=source.given.size, counts="")
        work = Backfill(
            spec=spec,
            topics=topics,
            producer=producer,
            archive=archive,
            clock=SystemClock(),
            stop=stop,
            save=source.state.save if source.state else lambda _: None,
            report=lambda tally: progress.update(
                task, completed=tally.position, counts=f"{tally.read} read, {tally.sent} sent"
            ),
            per_second=rate,
            refresh=refresh,
        )
        run.tally = work.tally
        work.run(source.given.rows)
    run.stopped = stop.is_set()
    run.complete = not run.stopped
    if run.stopped:
        goes_on = ": the same command goes on from there" if source.state and producer else ""
        err.print(f"stopped after row {source.skipped + run.tally.read}{goes_on}")
    if run.complete and source.state is not None and producer is not None:
        try:
            source.state.forget()
        except OSError as error:
            raise BackfillStopped(
                f"all is sent, but {source.state.path} cannot be removed: {error.strerror}"
            ) from error
