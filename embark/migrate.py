"""`embark migrate`: from one encoder's view to another's, without an answer that mixes them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress

from embark.backfill import COLUMNS, INTERRUPTED, KEY_COLUMN, ask, registered
from embark.console import AS_JSON, err, one_line_errors, out
from embark.found_keys import found_keys
from embark.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoders.spec import EncoderSpec
    from materializer.coverage import Coverage

POLL_SECONDS = 2.0


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--service", metavar="NAME", help="The feature service to switch over; none: only tell the coverage.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.99, show_default=True, help="Of the coverage.")
@click.option(
    "--traffic",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Look-ups or impressions, a row each, in parquet or CSV: how much each key counts.",
)
@click.option("--key-column", metavar="COLUMN", help="Of the traffic: URLs or texts; 'key' unless given.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Requests a second, at most.")
@click.option("--wait", is_flag=True, help="Wait until the threshold is reached, or too much failed.")
@click.option("--rollback", is_flag=True, help="Make the service what it was before it was switched.")
@AS_JSON
@click.pass_obj
@one_line_errors
def migrate(
    settings: Settings,
    old: str,
    new: str,
    service: str | None,
    threshold: float,
    traffic: Path | None,
    key_column: str | None,
    rate: float | None,
    wait: bool,
    rollback: bool,
    as_json: bool,
) -> None:
    """Move from the feature view OLD to NEW.

    Asks for the embeddings that NEW lacks, of all keys and event times in OLD's history. Tells how much of what OLD
    answers NEW answers too, weighted by --traffic if given. Where that reaches the threshold, the feature service is
    switched from OLD to NEW by one write of the registry: a model that names the service gets all of the one or all of
    the other. Exits with 1 below the threshold: run it again later, or --wait, which ends where so many keys failed
    that it cannot be reached.

    \b
    embark migrate resnet18__v1 resnet18__v2 --rate 200
    embark migrate resnet18__v1 resnet18__v2 --service ctr --traffic impressions.parquet --key-column url --wait
    embark migrate resnet18__v1 resnet18__v2 --service ctr --rollback

    `feast apply` keeps the switch while catalog.py declares the service as it was before; name NEW there when it
    stays.
    """
    import kafka  # noqa: F401 - before Feast, which from then on shows the deprecation warnings of every library

    from embark.repo import open_store

    if key_column and traffic is None:
        raise click.UsageError("--key-column is of --traffic")
    if rollback and (service is None or wait or traffic is not None):
        raise click.UsageError("--rollback takes a --service, and neither --wait nor --traffic")
    store = open_store(settings.repo)
    told = Told(old=old, new=new, service=service, threshold=threshold, weighted_by=str(traffic or "keys"))
    if rollback:
        assert service is not None  # noqa: S101 - just checked
        take_back(store, old, new, service)
        told.rolled_back = True
        told.show(as_json)
        return
    before, after = registered(store, old, "OLD"), registered(store, new, "NEW")
    if old == new:
        raise click.BadParameter(f"another view than {old} is expected", param_hint="NEW")
    if before.modality != after.modality:
        raise click.BadParameter(f"{old} is of {before.modality}s, {new} of {after.modality}s", param_hint="NEW")
    told.switched = service is not None and is_switched(store, old, new, service)  # and an unknown service is an error
    # 1. the keys of the old view, and their event times
    keys = found_keys(store, before, settings.state.resolve() / "migrations", anew=False, use=f"migrate\0{new}")
    # 2. ask for those that the new one lacks
    run = ask(
        store,
        after,
        keys,
        key_column="key",
        time_column="event_time",
        states=settings.state.resolve() / "migrations",
        rate=rate,
    )
    told.sent = run.tally.sent if run.tally else 0
    # 3. how much it has
    told.coverage, stopped = covered(store, before, after, keys, threshold, traffic, key_column, wait=wait)
    keys.unlink()  # all is sent: the next run begins with the keys of then
    # 4. switch, if that is enough
    if not stopped and told.enough and service is not None and not told.switched:
        switch(store, old, new, service)
        told.switched = True
    told.show(as_json)
    if stopped:
        raise click.exceptions.Exit(INTERRUPTED)
    if not told.enough:
        raise click.exceptions.Exit(1)


@dataclass(kw_only=True, slots=True)
class Told:
    """What is told of a migration.

    Attributes:
        weighted_by: the file of the traffic, or `keys` where each counts the same.
        sent: requests for what the new view lacked.
    """

    old: str
    new: str
    service: str | None
    threshold: float
    weighted_by: str
    sent: int = 0
    coverage: "Coverage | None" = None
    switched: bool = False
    rolled_back: bool = False

    @property
    def enough(self) -> bool:
        return self.coverage is not None and self.coverage.share >= self.threshold

    def show(self, as_json: bool) -> None:
        if as_json:
            share = (
                {"share": self.coverage.share, "reachable": self.coverage.reachable, "enough": self.enough}
                if self.coverage
                else {}
            )
            click.echo(json.dumps(asdict(self) | share, indent=2))
            return
        if self.rolled_back:
            out.print(f"service {self.service} is what it was before: it names {self.old}")
            out.print(f"name {self.old} there in catalog.py too, if it was changed: the next `feast apply` takes it")
            return
        if self.coverage is not None:
            weights = "each key counts the same" if self.weighted_by == "keys" else f"weighted by {self.weighted_by}"
            out.print(
                f"{self.new} has {self.coverage.covered} of the {self.coverage.keys} keys of {self.old},"
                f" {self.coverage.share:.2%} ({weights}); {self.sent} were asked for, {self.coverage.failed} failed",
                markup=False,
            )
        if self.switched:
            out.print(
                f"service {self.service} names {self.new}; name it there in catalog.py too, instead of {self.old}"
            )
        elif self.enough:
            out.print("enough to switch: name a feature service with --service")
        elif self.coverage is not None and self.coverage.reachable < self.threshold:
            out.print(
                f"not enough to switch: {self.threshold:.2%} is the threshold, and with those that failed no more than"
                f" {self.coverage.reachable:.2%} can be reached. See why: embark dead-letters list --view {self.new}",
                markup=False,
            )
        else:
            out.print(f"not enough to switch: {self.threshold:.2%} is the threshold; KFC may still be embedding")


def covered(
    store: "FeatureStore",
    before: "EncoderSpec",
    after: "EncoderSpec",
    keys: Path,
    threshold: float,
    impressions: Path | None,
    key_column: str | None,
    *,
    wait: bool,
) -> "tuple[Coverage, bool]":
    """How much of the keys the new view has, when that is enough or was asked for; and whether a signal came before.

    Raises:
        CoverageUnknown, InputError: as they say.
    """
    from embark.parts import stopped_by_signals
    from feature_repo.failures import CassandraFailureMarks
    from feature_repo.online_rows import FeastOnlineRows
    from materializer.archive import FeastArchive
    from materializer.backfill_input import open_file
    from materializer.coverage import CoverageMeter, traffic

    weights = None
    if impressions is not None:
        with err.status(f"reading {impressions}"), open_file(impressions, key_column=key_column or KEY_COLUMN) as found:
            weights = traffic(found.rows, before)
    marks = CassandraFailureMarks.of(store)
    meter = CoverageMeter(keys, after, FeastArchive(store, FeastOnlineRows(store)), marks, weights)
    with stopped_by_signals() as stop, bar() as progress:
        task = progress.add_task(f"coverage of {after.view}", total=None, counts="")
        coverage = meter.measure()
        while wait and coverage.share < threshold <= coverage.reachable and not stop.is_set():
            goal = max(1, round(coverage.weight * threshold))
            counts = f"{coverage.covered} of {coverage.keys} keys"
            progress.update(task, total=goal, completed=coverage.covered_weight, counts=counts)
            stop.wait(POLL_SECONDS)
            coverage = meter.measure()
        return coverage, stop.is_set()


def bar() -> Progress:
    return Progress(*COLUMNS, console=err, transient=True, disable=not err.is_terminal)


def is_switched(store: "FeatureStore", old: str, new: str, service: str) -> bool:
    """Whether a service names the new view already.

    Raises:
        click.BadParameter: there is no such service, or it names neither view.
    """
    from feature_repo.services import members_of

    members = members_of(service_of(store, service))
    if old not in members and new not in members:
        named = ", ".join(members) or "no view"
        raise click.BadParameter(f"service {service!r} names neither of the two, but {named}", param_hint="--service")
    return old not in members


def service_of(store: "FeatureStore", name: str) -> Any:
    """The service as registered now.

    Raises:
        click.BadParameter: there is none of that name.
    """
    services = {each.name: each for each in store.registry.list_feature_services(store.project)}
    if name not in services:
        known = ", ".join(sorted(services)) or "none"
        raise click.BadParameter(f"there is no service {name!r}; registered are: {known}", param_hint="--service")
    return services[name]


def switch(store: "FeatureStore", old: str, new: str, service: str) -> None:
    """Has a service name the new view: one write of the registry."""
    from feature_repo.services import switched

    view = store.registry.get_feature_view(new, store.project)
    store.registry.apply_feature_service(switched(service_of(store, service), old, view), store.project)


def take_back(store: "FeatureStore", old: str, new: str, service: str) -> None:
    """Makes a service what it was before: one write of the registry.

    Raises:
        CannotSwitch: it was not switched so.
        click.BadParameter: there is no such service, or the old view is not registered any more.
    """
    from feature_repo.services import switched_back

    restored = switched_back(service_of(store, service), old, new)
    registered(store, old, "OLD")
    store.registry.apply_feature_service(restored, store.project)
