"""`embark plan`: what machines an archive will need, and how it will do."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from embark.console import AS_JSON, err, one_line_errors, out

if TYPE_CHECKING:
    from embark.planning.sizing import Plan
    from embark.planning.workload import EncoderLoad, Rates

MEASURED_HERE = "mobilenet_v3_small:576:142"  # benchmarks.materialize: fed by KFC, on two cores without a GPU


@click.command()
@click.option("--lookups", type=click.FloatRange(0, min_open=True), required=True, help="Keys a second, of each view.")
@click.option("--items", type=click.IntRange(1), required=True, help="In the catalogue.")
@click.option("--new-items", type=click.FloatRange(0), required=True, help="A day.")
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    default=(MEASURED_HERE,),
    show_default=True,
    metavar="NAME:DIM:RATE",
    help="Floats of an embedding, and embeddings a second of one Retina; may be given several times.",
)
@click.option("--days", type=click.FloatRange(0, min_open=True), default=365.0, show_default=True, help="To simulate.")
@click.option("--skew", type=click.FloatRange(0, 3), default=0.9, show_default=True, help="Zipf's exponent.")
@click.option("--archived", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Share at the start.")
@click.option("--change-days", type=click.FloatRange(0), default=0.0, help="Between two changes of an encoder.")
@click.option("--change", type=click.Choice(["migrate", "cold"]), default="migrate", show_default=True)
@click.option(
    "--delay", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="Miss to hit, s."
)
@click.option("--hot-share", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Of items, in caches.")
@click.option("--retinas", type=click.IntRange(1), help="Of each encoder; as many as are needed otherwise.")
@click.option("--recompute-days", type=click.FloatRange(0, min_open=True), default=7.0, show_default=True)
@click.option(
    "--tolerated", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share that may be OOV."
)
@click.option("--rates", "rates_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder for pictures.")
@AS_JSON
@one_line_errors
def plan(
    lookups: float,
    items: int,
    new_items: float,
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
    folder: Path | None,
    as_json: bool,
) -> None:
    """Size an archive: machines, costs, hit and OOV rates over time, and whether the design fits.

    \b
    embark plan --lookups 50000 --items 100000000 --new-items 500000
    embark plan --lookups 50000 --items 1000000000 --new-items 2000000 --encoder image:512:400 --to plan
    embark plan --lookups 2000 --items 1000000 --new-items 10000 --archived 0 --days 30 --retinas 2 --json
    embark plan --lookups 2000 --items 1000000 --new-items 10000 --change-days 30 --change cold

    Simulates arrivals by Zipf's law; a billion items take a second. docs/plan.md tells of the model, the measured rates
    and how to give your own. Exits with 0, also where an assumption of the design does not hold.
    """
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
    with err.status("simulating"):
        made = make_plan(
            workload,
            [encoder_load(each) for each in encoders],
            rates_of(rates_file),
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


def rates_of(path: Path | None) -> "Rates":
    """The measured rates, with those of a file in their places.

    Raises:
        PlanError: it cannot be read, or names what is no rate.
    """
    from embark.planning.workload import PlanError, Rates

    if path is None:
        return Rates()
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from error
    unknown = sorted(set(given) - set(Rates.__slots__))
    if unknown or not all(type(value) in (int, float) for value in given.values()):
        raise PlanError(
            f"{path}: {', '.join(unknown) or 'a value'} is no rate; they are numbers named {', '.join(Rates.__slots__)}"
        )
    return Rates(**given)


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
