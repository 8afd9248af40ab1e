"""`embark dead-letters`: looks at the requests that were given up, sends them again, removes old ones."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from embark.console import AS_JSON, err, one_line_errors, out, printable
from embark.settings import Settings

if TYPE_CHECKING:
    from materializer.dead_letter import DeadLetter

VIEW = click.option("--view", help="Only those of one feature view.")
REASON = click.option("--reason", help="Only those of one reason, as NotFound.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
SHOWN_BYTES = 4096  # of a message, on a terminal; --json has all of it
MANY = 500  # requests: from here on there is something to watch


@click.group("dead-letters")
def dead_letters() -> None:
    """The requests that were given up: list them, send them again, remove them.

    \b
    embark dead-letters list --summary
    embark dead-letters show shop.requests:3:17
    embark dead-letters retry --reason Timeout
    embark dead-letters purge --before 2026-11-01
    """
    import kafka  # noqa: F401 - before Feast, which from then on shows the deprecation warnings of every library


@dead_letters.command("list")
@VIEW
@REASON
@click.option("--summary", is_flag=True, help="Only count them, by view and reason.")
@AS_JSON
@click.pass_obj
@one_line_errors
def list_letters(settings: Settings, view: str | None, reason: str | None, summary: bool, as_json: bool) -> None:
    """List the requests that were given up, and why; oldest first.

    \b
    embark dead-letters list --reason NotFound
    embark dead-letters list --summary --json
    """
    from materializer.dead_letter_actions import count_by_view_and_reason, select

    letters = select(read(settings), view=view, reason=reason)
    counts = count_by_view_and_reason(letters)
    if as_json and summary:
        click.echo(json.dumps([{"view": v, "reason": r, "letters": n} for v, r, n in counts], indent=2))
    elif as_json:
        click.echo(json.dumps([as_fields(letter) for letter in letters], indent=2))
    elif summary:
        for of_view, why, count in counts:
            out.print(f"{count:>8}  {printable(why):<20} {printable(of_view) or '(no request)'}", markup=False)
    else:
        for letter in letters:
            out.print(
                f"{printable(letter.reason)}: {printable(letter.detail)}\n"
                f"  {printable(letter.view)} {letter.key[:200]!r}\n"
                f"  {letter.position} given up {moment(letter.failed_at)}",
                markup=False,
            )
    if not as_json:
        err.print(f"{len(letters)} dead letters")


@dead_letters.command()
@click.argument("position", metavar="TOPIC:PARTITION:OFFSET")
@AS_JSON
@click.pass_obj
@one_line_errors
def show(settings: Settings, position: str, as_json: bool) -> None:
    """Show all of one dead letter, with its message as text, or as hex digits where it is none.

    Example: embark dead-letters show shop.requests:3:17
    """
    (letter,) = chosen(read(settings), positions=[position])
    text = as_text(letter.value)
    if as_json:
        message = {"value": text, "encoding": "text"} if text is not None else {"value": letter.value.hex()}
        click.echo(json.dumps(as_fields(letter) | {"encoding": "hex"} | message, indent=2))
        return
    times = {name: moment(getattr(letter, name)) for name in ("requested_at", "failed_at")}
    fields = {name: value for name, value in as_fields(letter).items() if name != "value"} | times
    for name, value in fields.items():
        out.print(f"{name:<13} {printable(str(value))}", markup=False)
    kept = f", {len(letter.value)} kept" if letter.size > len(letter.value) else ""
    out.print(f"message       {letter.size} bytes{kept}, {'hex' if text is None else 'text'}:", markup=False)
    shown = letter.value[:SHOWN_BYTES].hex(" ", -4) if text is None else text[:SHOWN_BYTES]
    out.print(shown + (" …" if len(letter.value) > SHOWN_BYTES else ""), markup=False)


@dead_letters.command()
@click.argument("positions", nargs=-1, metavar="[TOPIC:PARTITION:OFFSET]…")
@VIEW
@REASON
@click.option("--all", "every", is_flag=True, help="All of them.")
@YES
@AS_JSON
@click.pass_obj
@one_line_errors
def retry(
    settings: Settings,
    positions: tuple[str, ...],
    view: str | None,
    reason: str | None,
    every: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send requests again, as they were first asked for, and forget that their keys failed.

    Choose them by position, by --view and --reason, or --all. The letters stay in their topic until they are purged; a
    request that fails again becomes a new one. Exits with 1 if a letter that was named by its position holds no
    request.

    \b
    embark dead-letters retry --reason Timeout
    embark dead-letters retry shop.requests:3:17 --yes --json
    """
    from rich.progress import Progress

    from embark.repo import open_store
    from embark.resending import resend
    from embark.starting import COLUMNS
    from feature_repo.failures import CassandraFailureMarks
    from materializer.dead_letter_actions import plan_retry
    from materializer.process import topics_of

    if not (positions or view or reason or every):
        raise click.UsageError("which ones? Name TOPIC:PARTITION:OFFSET, --view, --reason or --all")
    if positions and every:
        raise click.UsageError("--all and positions exclude each other")
    letters = chosen(read(settings), view=view, reason=reason, positions=positions)
    store = open_store(settings.repo)
    servers, topics = topics_of(store)
    retries, refused = plan_retry(letters, topics)
    for each in refused:
        err.print(f"{each.letter.position} cannot be sent again: {printable(each.why)}", markup=False)
    count = f"{len(retries)} request{'s' * (len(retries) != 1)}"
    if retries:
        if not yes:
            click.confirm(f"Send {count} again?", abort=True, err=True)
        marks = CassandraFailureMarks.of(store)
        with Progress(*COLUMNS, console=err, transient=True, disable=not err.is_terminal) as progress:
            task = progress.add_task("sending again", total=len(retries), visible=len(retries) >= MANY)
            resend(servers, marks, retries, lambda more: progress.update(task, advance=more))
    if as_json:
        told = {
            "sent": len(retries),
            "letters": [letter.position for each in retries for letter in each.letters],
            "refused": [{"position": each.letter.position, "why": each.why} for each in refused],
        }
        click.echo(json.dumps(told, indent=2))
    else:
        out.print(f"{count} sent again" + (f"; {len(refused)} letters without a request left out" if refused else ""))
    if positions and refused:
        raise click.exceptions.Exit(1)


@dead_letters.command("purge")
@click.option(
    "--before",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]),
    metavar="DATE",
    help="Those that came in before 2026-11-01, or 2026-11-01T12:00:00; UTC unless it says otherwise.",
)
@click.option("--all", "every", is_flag=True, help="All of them.")
@YES
@AS_JSON
@click.pass_obj
@one_line_errors
def purge_letters(settings: Settings, before: datetime | None, every: bool, yes: bool, as_json: bool) -> None:
    """Remove dead letters for good, up to a point in time; Kafka drops them by itself after 30 days.

    Example: embark dead-letters purge --before 2026-11-01
    """
    from embark.repo import open_store
    from materializer.dead_letter_actions import plan_purge, purge
    from materializer.process import topic_admin, topic_reader, topics_of

    if (before is None) != every:
        raise click.UsageError("up to when? Give either --before DATE or --all")
    if before is not None and before.tzinfo is None:
        before = before.replace(tzinfo=UTC)
    servers, topics = topics_of(open_store(settings.repo))
    with topic_reader(servers) as consumer:
        plan = plan_purge(consumer, topics, before)
    if plan.messages and not yes:
        click.confirm(f"Remove {plan.messages} messages from {topics.dead_letters} for good?", abort=True, err=True)
    if plan.messages:
        with topic_admin(servers) as admin:
            purge(admin, plan)
    if as_json:
        click.echo(json.dumps({"topic": topics.dead_letters, "removed": plan.messages}))
    else:
        out.print(f"{plan.messages} messages removed from {topics.dead_letters}")


def read(settings: Settings) -> "list[DeadLetter]":
    """All dead letters, oldest first.

    Raises:
        NoRepo, NothingApplied, KafkaUnavailable: see there.
    """
    from embark.repo import open_store
    from materializer.process import dead_letters as read_all

    return read_all(open_store(settings.repo))


def chosen(
    letters: "list[DeadLetter]", *, view: str | None = None, reason: str | None = None, positions: Sequence[str]
) -> "list[DeadLetter]":
    """`select`, with errors as the command line shows them."""
    from materializer.dead_letter_actions import NoSuchLetter, select

    try:
        return select(letters, view=view, reason=reason, positions=positions)
    except NoSuchLetter as error:
        raise click.BadParameter(str(error), param_hint="TOPIC:PARTITION:OFFSET") from None


def as_fields(letter: "DeadLetter") -> dict[str, Any]:
    """The letter as JSON; bytes of its message that are no UTF-8 are escaped."""
    return {"position": letter.position} | asdict(letter) | {"value": letter.value.decode(errors="backslashreplace")}


def as_text(value: bytes) -> str | None:
    """A message as text; None where it is none, or would do something to a terminal."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\n\t" for c in text) else None


def moment(microseconds: int) -> str:
    """A time since 1970 as people write it, in UTC."""
    try:
        return f"{datetime.fromtimestamp(microseconds // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{microseconds} µs after 1970"
