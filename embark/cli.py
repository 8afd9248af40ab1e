"""The command line. Each command is thin: it reads settings, builds the parts, hands them to each other."""

import contextlib
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import ValidationError
from rich.markup import escape

from embark.backfill import backfill
from embark.command_map import MappedGroup
from embark.completion import completion
from embark.console import AS_JSON, err, one_line_errors, out, start_logging
from embark.dead_letters import dead_letters
from embark.duplicates import duplicates
from embark.encode import encode
from embark.encoders import encoders
from embark.evaluate import evaluate
from embark.export import export
from embark.invalidate import invalidate
from embark.migrate import migrate
from embark.oov import oov
from embark.packages import ShadowedPackage, check_packages
from embark.plan import plan
from embark.rank import rank
from embark.reembed import reembed
from embark.settings import Settings
from embark.train import train
from embark.web_console.command import console

if TYPE_CHECKING:
    from embark.servers import ServerStatus


def main() -> None:
    """Entry point of the console script: one line for what a user can mend, a trace for what only we can."""
    try:
        check_packages()
        import feature_repo  # noqa: F401 - before Feast, and only when it is known to be ours: keeps torch out

        code = cli(standalone_mode=False)  # what a command exits with comes back as its value
        sys.exit(code if isinstance(code, int) else 0)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ValidationError as error:
        for problem in error.errors():
            err.print(f"[red]error:[/] setting {'.'.join(map(str, problem['loc']))}: {escape(problem['msg'])}")
        sys.exit(2)
    except ShadowedPackage as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(1)


@click.group(cls=MappedGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="embark")
@click.pass_context
def cli(context: click.Context) -> None:
    """EmbArk: an embedding archive on the Feast feature store.

    \b
    embark demo                                   see all of it work
    embark up && embark apply                     start servers, register encoders
    embark lookup VIEW KEY…                       ask

    Exits with 0 if all went well, 1 if what was to be done failed or did not hold, 2 if it was called wrongly, 130
    after Ctrl-C. `embark COMMAND --help` has examples; settings come from the environment or embark.toml.
    """
    context.obj = Settings()


# ── local servers ────────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option("--nodes", type=click.IntRange(1, 9), default=1, show_default=True, help="Of Kafka and Cassandra, each.")
@AS_JSON
@click.pass_obj
@one_line_errors
def up(settings: Settings, nodes: int, as_json: bool) -> None:
    """Start a real Kafka and a real Cassandra on this machine.

    Nothing needs to be installed. Data survives `embark down`; starting twice is harmless.

    \b
    embark up
    embark up --nodes 3 --json
    """
    from embark.servers import LocalServers
    from embark.starting import start_servers

    servers = LocalServers(
        state=settings.state.resolve(),
        kafka_port=settings.kafka_port,
        cassandra_port=settings.cassandra_port,
        keyspace=settings.keyspace,
        nodes=nodes,
    )
    start_servers(servers, err)
    print_status(servers.status(), as_json)


@cli.command()
@AS_JSON
@click.pass_obj
@one_line_errors
def down(settings: Settings, as_json: bool) -> None:
    """Stop the servers that `embark up` started; their data stays.

    Example: embark down
    """
    from embark.servers import LocalServers

    stopped = LocalServers(state=settings.state.resolve()).down()
    if as_json:
        click.echo(json.dumps({"stopped": stopped}))
    else:
        out.print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@cli.command()
@AS_JSON
@click.pass_obj
@one_line_errors
def status(settings: Settings, as_json: bool) -> None:
    """Show which local servers run, and where. Exits with 1 unless all of them are ready.

    Example: embark status --json
    """
    from embark.servers import LocalServers

    nodes = LocalServers(state=settings.state.resolve()).status()
    print_status(nodes, as_json)
    if not nodes or not all(node.ready for node in nodes):
        raise click.exceptions.Exit(1)


def print_status(nodes: "list[ServerStatus]", as_json: bool) -> None:
    """A line a server, or JSON."""
    if as_json:
        click.echo(json.dumps([asdict(node) for node in nodes], indent=2, default=str))
        return
    if not nodes:
        out.print("no servers: start them with [bold]embark up[/]")
    for node in nodes:
        state = "[green]ready[/]" if node.ready else "[yellow]starting[/]" if node.running else "[red]down[/]"
        out.print(f"{node.name:<12} {node.version:<8} {node.address}:{node.port:<6} {state:<20} log {node.log}")


# ── the registry ─────────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--project", default="embark", show_default=True, help="Feast project.")
@click.option("--keyspace", default="embark", show_default=True, help="Cassandra keyspace.")
@click.option("--kafka", default="127.0.0.1:9092", show_default=True, help="Bootstrap servers.")
@click.option("--cassandra", default="127.0.0.1", show_default=True, help="Hosts, separated by commas.")
@click.option("--cassandra-port", type=int, default=9042, show_default=True, help="Of all of them.")
@click.option("--registry", default="", metavar="URL", help="Of the registry's database; a file in FOLDER otherwise.")
@click.option("--history", default="", metavar="URI", help="Where histories lie; a folder in FOLDER otherwise.")
@click.option("--s3-endpoint", default="", metavar="URL", help="Of a server that speaks S3; Amazon's otherwise.")
@AS_JSON
@one_line_errors
def init(
    folder: Path,
    project: str,
    keyspace: str,
    kafka: str,
    cassandra: str,
    cassandra_port: int,
    registry: str,
    history: str,
    s3_endpoint: str,
    as_json: bool,
) -> None:
    """Write a feature repo of your own into FOLDER, with the encoders of this project.

    \b
    embark init shop --kafka broker-1:9092 --cassandra 10.0.0.1,10.0.0.2
    embark init shop --registry 'postgresql+psycopg://embark:${PASSWORD}@db/embark' --history s3://shop/history

    Several hosts share a registry in a database and history in an object store: docs/deploy.md. Feast fills in what
    stands as ${NAME} from the environment, in feature_store.yaml alone.
    """
    from embark.repo import write_repo

    write_repo(
        folder,
        project=project,
        keyspace=keyspace,
        kafka=kafka,
        cassandra_hosts=[host.strip() for host in cassandra.split(",")],
        cassandra_port=cassandra_port,
        registry=registry,
        history=history,
        s3_endpoint=s3_endpoint,
    )
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "catalog": str(folder / "catalog.py"), "project": project}))
        return
    out.print(f"wrote {folder}: declare encoders in {folder / 'catalog.py'}, then EMBARK_REPO={folder} embark apply")


@cli.command()
@AS_JSON
@click.pass_obj
@one_line_errors
def apply(settings: Settings, as_json: bool) -> None:
    """Register the encoders of the feature repo: what `feast apply` does, with one-line errors.

    \b
    embark apply
    EMBARK_REPO=shop embark apply --json
    """
    from embark.repo import apply_repo, open_store
    from feature_repo.session import connect
    from feature_repo.views import encoder_specs

    store = open_store(settings.repo)
    connect(store)  # "start the servers" before a trace from within Feast
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        apply_repo(settings.repo, allowed_modules=settings.allowed_modules)
    specs = encoder_specs(store, allow_cache=False).values()
    if as_json:
        click.echo(json.dumps([asdict(spec) | {"view": spec.view, "fingerprint": spec.fingerprint} for spec in specs]))
        return
    for spec in specs:
        out.print(f"{spec.view:<28} {spec.modality:<6} {spec.dim:>5}  {weights_note(spec.pinned)}")


def weights_note(pinned: str) -> str:
    """The pinned weights, loud where they were never trained."""
    return f"[yellow]{pinned}: NOT pretrained[/]" if pinned.startswith("seeded:") else pinned


@cli.command()
@click.option("--drop-orphaned", is_flag=True, help="Drop the tables of views that are no longer declared.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
@click.pass_obj
@one_line_errors
def tables(settings: Settings, drop_orphaned: bool, yes: bool, as_json: bool) -> None:
    """List the online tables of this project: used, of an old version of a view, or orphaned.

    `feast apply` keeps the table of a view that is no longer declared, with its rows; declared again, it is used again.

    \b
    embark tables --json
    embark tables --drop-orphaned
    """
    from embark.repo import open_store
    from embark.tables import drop_tables, project_tables

    store = open_store(settings.repo)
    found = project_tables(store)
    orphaned = [each.table for each in found if each.state == "orphaned"]
    if as_json:
        click.echo(json.dumps([asdict(each.table) | {"state": each.state} for each in found], indent=2))
    else:
        for each in found:
            version = f"@v{each.table.version}" if each.table.version else ""
            out.print(f"{each.table.view + version:<32} {each.state:<12} {each.table.keyspace}.{each.table.name}")
    if not drop_orphaned or not orphaned:
        return
    if not yes:
        click.confirm(f"Drop {', '.join(table.name for table in orphaned)}, with every row?", abort=True, err=True)
    drop_tables(store, orphaned)
    err.print(f"dropped {len(orphaned)} tables")


@cli.command()
@click.option("--view", help="One feature view; all of them otherwise.")
@click.option("--grace", type=click.FloatRange(min=0), metavar="SECONDS", help="How long replaced files are kept.")
@AS_JSON
@click.pass_obj
@one_line_errors
def compact(settings: Settings, view: str | None, grace: float | None, as_json: bool) -> None:
    """Make few large files of the many small ones that history is written in.

    Safe beside writers and readers. What was replaced is removed by a later run, when it has been so for longer than
    any read takes: six hours, or `compaction_grace_seconds` of the offline store.

    \b
    embark compact
    embark compact --view text_lstm__v1 --json
    """
    from feast.errors import FeastObjectNotFoundException

    from embark.repo import open_store
    from feature_repo.offline.compaction import compact_history

    try:
        with err.status("compacting history"):
            done = compact_history(open_store(settings.repo), view, grace_seconds=grace)
    except (FeastObjectNotFoundException, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--view") from None
    if as_json:
        click.echo(json.dumps([asdict(each) for each in done], indent=2))
        return
    for each in done:
        if each.busy:
            out.print(f"{each.view:<32} being compacted by another process")
        else:
            out.print(
                f"{each.view:<32} {each.parts_before} → {each.parts_after} files, {each.rows} rows written anew,"
                f" {each.doubles} doubles dropped, {each.removed} old files removed, {each.waiting} waiting"
            )


# ── the three parts ──────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option("--listen", help="HOST:PORT; EMBARK_RETINA_ADDRESS otherwise.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute.")
@click.option(
    "--allow-network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="A private network to download from, as 127.0.0.0/8; public addresses only otherwise.",
)
@click.option("--warm", multiple=True, metavar="VIEW", help="An encoder to load before it says that it is ready.")
@click.option("--memory", type=click.IntRange(0), metavar="MB", help="Of parameters to hold; 0: no limit.")
@click.option("--compile", "compiled", is_flag=True, help="Have torch compile the networks; needs a C++ compiler.")
@click.option("--metrics", metavar="HOST:PORT", help="Where Prometheus finds its metrics; nowhere otherwise.")
@click.pass_obj
@one_line_errors
def retina(
    settings: Settings,
    listen: str | None,
    device: str | None,
    networks: tuple[str, ...],
    warm: tuple[str, ...],
    memory: int | None,
    compiled: bool,
    metrics: str | None,
) -> None:
    """Run Retina: downloads, decodes and embeds for KFC. `docs/retina.md` has its settings.

    \b
    embark retina --listen 127.0.0.1:50061 --warm mobilenet_v3_small__v1 --metrics 127.0.0.1:9462
    """
    from embark.parts import run_retina

    changed: dict[str, object] = {
        "retina_address": listen,
        "device": device,
        "fetch_networks": list(networks),
        "retina_warm": list(warm),
        "retina_memory_mb": memory,
        "retina_compile": compiled,
        "retina_metrics": metrics,
    }
    run_retina(overridden(settings, changed))


@cli.command()
@click.pass_obj
@one_line_errors
def materialize(settings: Settings) -> None:
    """Run KFC: embeds what look-ups missed and pushes it to history and the online store.

    Example: EMBARK_KFC_METRICS=127.0.0.1:9471 embark materialize
    """
    from embark.parts import run_materializer

    start_logging(settings)
    run_materializer(settings)


@cli.command()
@click.option("--listen", help="HOST:PORT; EMBARK_EMBARK_ADDRESS otherwise.")
@click.option("--processes", type=click.IntRange(1, 256), help="On that port; EMBARK_PROCESSES otherwise.")
@click.option("--process", type=int, hidden=True)  # which of them this one is: set by their parent
@click.pass_obj
@one_line_errors
def serve(settings: Settings, listen: str | None, processes: int | None, process: int | None) -> None:
    """Run EmbArk: answers look-ups over gRPC.

    \b
    embark serve --processes 4
    embark serve --listen 0.0.0.0:50051     with EMBARK_TLS_CERTIFICATE, EMBARK_TLS_KEY and EMBARK_CALLERS set

    docs/serving.md tells of all settings.
    """
    changed = overridden(settings, {"embark_address": listen, "processes": processes})
    from embark.serve import run_embark

    run_embark(changed, process)


@cli.command("feature-server")
@click.option("--listen", default="127.0.0.1:6566", show_default=True, help="HOST:PORT.")
@click.pass_obj
@one_line_errors
def feature_server(settings: Settings, listen: str) -> None:
    """Run Feast's own feature server over EmbArk's store, for any Feast client.

    What is missing is answered with its OOV embedding and asked for, as by EmbArk itself. Feast's clients speak plain
    HTTP: it listens on this machine alone, unless EMBARK_PLAINTEXT=true.

    Example: embark feature-server --listen 127.0.0.1:6566
    """
    from embark.feature_server import run_feature_server

    run_feature_server(overridden(settings, {}), listen)


@cli.command()
@click.argument("name")
@click.option("--view", "views", multiple=True, metavar="VIEW", help="That it may read; all of them otherwise.")
@click.option("--announce", is_flag=True, help="Whether it may announce keys.")
@click.option("--keys-per-second", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most.")
@click.option("--bytes-per-second", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most.")
@click.option("--max-keys", type=click.IntRange(1), metavar="N", help="Of one call, at most.")
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help="Of one call and the vectors of its answer.")
@AS_JSON
@one_line_errors
def token(
    name: str,
    views: tuple[str, ...],
    announce: bool,
    keys_per_second: float | None,
    bytes_per_second: float | None,
    max_keys: int | None,
    max_bytes: int | None,
    as_json: bool,
) -> None:
    """Make a token for the caller NAME: the table for the file of EMBARK_CALLERS, and on standard error the token.

    \b
    embark token ranker --view text_lstm__v1 --keys-per-second 50000 >> callers.toml
    """
    from embark.tokens import new_token

    secret, table = new_token(
        name,
        views=views,
        announce=announce,
        keys_per_second=keys_per_second,
        bytes_per_second=bytes_per_second,
        max_keys=max_keys,
        max_bytes=max_bytes,
    )
    if as_json:
        click.echo(json.dumps({"name": name, "table": table, "token": secret}))
        return
    click.echo(table)
    err.print(f"token of {name}, shown once: {secret}", markup=False)


def overridden(settings: Settings, options: dict[str, object]) -> Settings:
    """The settings with the options that were given, checked as settings are, and logging started."""
    changed = settings.overridden(options)
    start_logging(changed)
    return changed


# ── look-ups ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.argument("view")
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Ask again for so many seconds while OOV.")
@AS_JSON
@click.pass_obj
@one_line_errors
def lookup(settings: Settings, view: str, keys: tuple[str, ...], wait: float, as_json: bool) -> None:
    """Look KEYs (URLs or texts) up in VIEW. Exits with 0 if all are hits, else with 1.

    \b
    embark lookup text_lstm__v1 "a red bicycle"
    embark lookup mobilenet_v3_small__v1 https://example.com/a.jpg --wait 30 --json
    """
    from embark.lookups import ask, client_tls, describe, print_answer
    from feature_repo.embeddings import Status
    from serving.client import EmbArkClient

    with EmbArkClient(
        settings.embark_address.split(","), token=settings.client_token or None, tls=client_tls(settings)
    ) as client:
        answer, milliseconds = ask(client, view, list(keys), wait)
    if as_json:
        click.echo(json.dumps(describe(view, keys, answer, milliseconds), indent=2))
    else:
        print_answer(out, view, keys, answer, milliseconds)
    if not (answer.status == Status.HIT).all():
        raise click.exceptions.Exit(1)


cli.add_command(backfill)
cli.add_command(reembed)
cli.add_command(invalidate)
cli.add_command(migrate)
cli.add_command(oov)
cli.add_command(dead_letters)
cli.add_command(encode)
cli.add_command(duplicates)
cli.add_command(plan)
cli.add_command(console)
cli.add_command(completion)
cli.add_command(encoders)


# ── the click-through-rate model ─────────────────────────────────────────────────────────────────────────────────────

for each in (train, evaluate, export, rank):
    cli.add_command(each)


# ── the demo ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("demo-report.html"),
    show_default=True,
    help="Write the HTML report here.",
)
@click.option("--keep", is_flag=True, help="Keep data and logs; they are kept where the demo does not hold.")
@click.pass_obj
@one_line_errors
def demo(settings: Settings, json_file: Path | None, report: Path, keep: bool) -> None:
    """See all of it work on real servers, on free ports; everything is stopped at the end.

    Exits with 0 if every step held. Needs no internet but the package registries; without pretrained weights it uses
    random ones and says so.

    Example: embark demo --json figures.json
    """
    import kafka  # noqa: F401 - before Feast, which from then on shows the deprecation warnings of every library

    from embark.demo import Demo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves in order: what was started is stopped
    result = Demo(settings, out, settings.state.resolve() / "demo", keep=keep).run(report)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_json(), indent=2))
        out.print(f"figures: {json_file.resolve()}")
    for note in result.notes:
        out.print(f"[yellow]{note}[/]")
    out.print("[green]every step held[/]" if result.held else "[red]not every step held[/]")
    if not result.held:
        raise click.exceptions.Exit(1)


@cli.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for a free one.")
@AS_JSON
@one_line_errors
def photographs(port: int, as_json: bool) -> None:
    """Serve the demo's photographs on this machine, for something to look up, and print their URLs. Stops with Ctrl-C.

    Example: embark photographs --port 8000
    """
    from embark.parts import stopped_by_signals
    from embark.photographs import PhotographServer

    with stopped_by_signals() as stop, PhotographServer(port) as server:
        if as_json:
            click.echo(json.dumps(server.urls, indent=2))
        else:
            for url in server.urls.values():
                out.print(url)
        stop.wait()
