"""`embark plan`: what machines an archive will need, and how it will do."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from embark.console import AS_JSON, err, one_line_errors, out
from embark.settings import Settings

if TYPE_CHECKING:
    from embark.planning.sizing import Plan
    from embark.planning.workload import EncoderLoad

MEASURED_HERE = "mobilenet_v3_small:576:142"  # benchmarks.materialize: fed by KFC, on two cores without a GPU


@click.command()
@click.option("--lookups", type=click.FloatRange(0, min_open=True), help="Keys a second, of each view.")
@click.option("--items", type=click.IntRange(1), help="In the catalogue.")
@click.option("--new-items", type=click.FloatRange(0), help="A day.")
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME:DIM:RATE",
    help="Floats of an embedding, and embeddings a second of one Retina; may be given several times. Those of --rates"
    f" otherwise, or {MEASURED_HERE}.",
)
@click.option("--days", type=click.FloatRange(0, min_open=True), default=365.0, show_default=True, help="To simulate.")
@click.option("--skew", type=click.FloatRange(0, 3), default=0.9, show_default=True, help="Zipf's exponent.")
@click.option("--archived", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Share at the start.")
@click.option("--change-days", type=click.FloatRange(0), default=0.0, help="Between two changes of an encoder.")
@click.option(
    "--change",
    type=click.Choice(["migrate", "cold"]),
    default="migrate",
    show_default=True,
    help="Whether the new view is filled before it is served.",
)
@click.option(
    "--delay", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="Miss to hit, s."
)
@click.option("--hot-share", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Of items, in caches.")
@click.option("--retinas", type=click.IntRange(1), help="Of each encoder; as many as are needed otherwise.")
@click.option(
    "--recompute-days",
    type=click.FloatRange(0, min_open=True),
    default=7.0,
    show_default=True,
    help="In which Retinas are to embed all items anew.",
)
@click.option(
    "--tolerated", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share that may be OOV."
)
@click.option(
    "--rates",
    "rates_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML, as of --calibrate.",
)
@click.option(
    "--calibrate",
    "calibrated",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Measure this machine first, with the servers of the feature repo; FILE keeps its other lines, as prices.",
)
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder for pictures.")
@AS_JSON
@click.pass_obj
@one_line_errors
def plan(
    settings: Settings,
    lookups: float | None,
    items: int | None,
    new_items: float | None,
    encoders: tuple[str, ...],
    days: float,
    skew: float,
    archived: float,
    change_days: float,
    change: str,
    delay: float,
    hot_share: float,
    retinas: int | None,
    recompute_days: float,
    tolerated: float,
    rates_file: Path | None,
    calibrated: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Size an archive: machines, costs, hit and OOV rates over time, and whether the design fits.

    \b
    embark plan --lookups 50000 --items 100000000 --new-items 500000
    embark plan --lookups 50000 --items 1000000000 --new-items 2000000 --encoder image:512:400 --to plan
    embark plan --lookups 2000 --items 1000000 --new-items 10000 --archived 0 --days 30 --retinas 2 --json
    embark plan --lookups 2000 --items 1000000 --new-items 10000 --change-days 30 --change cold
    embark plan --calibrate rates.toml
    embark plan --lookups 2000 --items 1000000 --new-items 10000 --rates rates.toml

    Simulates arrivals by Zipf's law; a billion items take a second. docs/plan.md tells of the model, the measured rates
    and how to give your own. Exits with 0, also where an assumption of the design does not hold.
    """
    if calibrated is not None:
        if rates_file is not None:
            raise click.UsageError("--calibrate writes a file of rates: leave out --rates")
        told_rates = calibrate_here(settings, calibrated)
        if lookups is None and items is None and new_items is None:
            if as_json:
                click.echo(json.dumps(told_rates, indent=2))
            return
        rates_file = calibrated
    if lookups is None or items is None or new_items is None:
        raise click.UsageError("give --lookups, --items and --new-items, or --calibrate FILE")
    from embark.planning.rates_file import RatesFile, read_rates
    from embark.planning.sizing import make_plan
    from embark.planning.workload import DAY, Workload

    workload = Workload(
        lookups=lookups,
        items=items,
        new_items=new_items,
        skew=skew,
        archived=archived,
        seconds=days * DAY,
        change_days=change_days,
        change="cold" if change == "cold" else "migrate",
        delay=delay,
        hot_share=hot_share,
    )
    rates = read_rates(rates_file) if rates_file else RatesFile(rates={})
    loads = [encoder_load(each) for each in encoders] or rates.encoders or [encoder_load(MEASURED_HERE)]
    with err.status("simulating"):
        made = make_plan(
            workload,
            loads,
            rates.all_rates,
            retinas=retinas,
            recompute_days=recompute_days,
            tolerated=tolerated,
        )
    told = made.to_json()
    if folder is not None:
        from embark.planning.pictures import draw_plan

        told["pictures"] = [str(path) for path in draw_plan(made, folder)]
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        show_plan(made)
        for picture in told.get("pictures", []):
            out.print(f"wrote {picture}")


def encoder_load(text: str) -> "EncoderLoad":
    """Raises:
    click.BadParameter: it is not NAME:DIM:RATE.
    """
    from embark.planning.workload import EncoderLoad

    try:
        name, dim, per_second = text.rsplit(":", 2)
        load = EncoderLoad(name=name, dim=int(dim), per_second=float(per_second))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not NAME:DIM:RATE", param_hint="--encoder") from None
    if not (load.name and load.dim > 0 and 0 < load.per_second < float("inf")):
        raise click.BadParameter(f"{text!r}: name, dim and rate must be there and above 0", param_hint="--encoder")
    return load


def calibrate_here(settings: Settings, path: Path) -> dict[str, Any]:
    """Measures, writes the file, and says what was measured; what it holds beside stays.

    Raises:
        PlanError: the file is there and holds something else than rates.
    """
    import platform
    from datetime import UTC, datetime

    import psutil

    from embark.planning.calibration import calibrate
    from embark.planning.rates_file import RatesFile, read_rates, write_rates

    before = read_rates(path) if path.exists() else RatesFile(rates={})
    with err.status("measuring") as status:
        done = calibrate(settings, lambda step: status.update(f"measuring: {escape(step)}"))
    made = RatesFile(rates={**before.rates, **done.rates}, encoders=done.encoders or before.encoders)
    machine = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, {platform.platform()}"
    comments = [f"measured by embark plan --calibrate on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {machine}"]
    comments += [f"not measured: {each}".replace("\n", " ") for each in done.missing]
    write_rates(path, made, comments)
    for name, rate in done.rates.items():
        err.print(f"{name:<22} {rate:>12,.2f}")
    for each in done.encoders:
        err.print(f"{each.name:<22} {each.per_second:>12,.1f} embeddings a second, {each.dim} floats")
    for lacking in done.missing:
        err.print(f"[yellow]not measured: {escape(lacking)}[/]")
    err.print(f"wrote {path}; next: embark plan --rates {path} --lookups N --items N --new-items N")
    return {"file": str(path), "rates": done.rates, "encoders": [asdict(e) for e in done.encoders]} | {
        "not_measured": done.missing
    }


def show_plan(plan: "Plan") -> None:
    """Machines, courses and verdicts."""
    told = plan.to_json()
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for column in ("machines", "dollars a month"):
        table.add_column(column, justify="right")
    for name, count in plan.machines.items():
        price = plan.monthly.get(name)
        table.add_row(name, str(count), "" if price is None else f"{price:,.0f}")
    table.add_row("all", "", f"{told['monthly_dollars']['all']:,.0f}")
    out.print(table)
    for name, view in told["views"].items():
        out.print(
            f"{name}: {view['hit_rate_settled']:.2%} HIT and {view['oov_rate_settled']:.3%} OOV once settled,"
            f" {view['asked_per_second']:,.1f} embeddings a second asked for,"
            f" all anew in {told['recompute_days'][name]:,.1f} days"
        )
    out.print(f"hot caches answer {plan.hot_hits:.1%}; Cassandra holds {plan.stored_bytes / 1e9:,.1f} GB a replica")
    for verdict in plan.verdicts:
        sign = "[green]holds[/]" if verdict.holds else "[red]DOES NOT HOLD[/]"
        out.print(f"{sign}: {verdict.assumption}: {verdict.why}")
