"""`embark encoders`: which encoders are registered, where they run, and how fast they are on this machine."""

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from embark.console import AS_JSON, err, one_line_errors, out
from embark.settings import Settings

if TYPE_CHECKING:
    from encoders.spec import EncoderSpec

RETINA_SECONDS = 3.0
MEASURE_SECONDS = 3.0  # of one encoder, after a first pass over the sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """An encoder in the Retina that answers.

    Attributes:
        loaded: whether its network is in memory; it is loaded when it is first asked for.
        device: where it computes.
        same: whether the fingerprint there is the registered one.
    """

    loaded: bool
    device: str
    same: bool


@click.command()
@click.option("--measure", is_flag=True, help="Run each on this machine for some seconds: keys a second.")
@AS_JSON
@click.pass_obj
@one_line_errors
def encoders(settings: Settings, measure: bool, as_json: bool) -> None:
    """List the registered encoders: what they are, where Retina runs them, and their speed.

    The speed is that of this machine, with decoding and without downloads; `EMBARK_DEVICE` says where it is computed.

    \b
    embark encoders
    embark encoders --measure --json
    """
    from embark.local_encoders import registered

    specs = list(registered(settings).values())
    running, away = ask_retina(settings.retina_address, specs)
    speeds: dict[str, float | str] = {}
    if measure:
        with err.status("measuring") as status:
            for spec in specs:
                status.update(f"measuring {spec.view}")
                speeds[spec.view] = measured(settings, spec)
    if as_json:
        click.echo(json.dumps([described(spec, running, speeds) for spec in specs], indent=2))
        if away:
            err.print(f"[yellow]{escape(away)}[/]")
        return
    if not specs:
        out.print("no encoders: declare them in the feature repo's catalog.py, then `embark apply`")
        return
    print_encoders(specs, running, speeds, measure=measure)
    if away:
        out.print(f"[yellow]{escape(away)}[/]")


def ask_retina(address: str, specs: "list[EncoderSpec]") -> tuple[dict[str, Running], str]:
    """What the Retina at an address says of each view; and why nothing, where none answers."""
    from encoders.client import RetinaClient, RetinaError

    registered = {spec.view: spec for spec in specs}
    with RetinaClient(address) as retina:
        try:
            reply = retina.encoders(timeout=RETINA_SECONDS)
        except RetinaError as error:
            return {}, f"where they run is not known: {error}"
    return {
        each.view: Running(
            loaded=each.loaded,
            device=each.device,
            same=each.view in registered and each.fingerprint == registered[each.view].fingerprint,
        )
        for each in reply.encoders
    }, ""


def described(spec: "EncoderSpec", running: dict[str, Running], speeds: dict[str, float | str]) -> dict[str, object]:
    """One encoder as JSON; `retina` is null where none answers or it does not know the view."""
    there = running.get(spec.view)
    speed = speeds.get(spec.view)
    values: dict[str, object] = {
        "view": spec.view,
        "modality": spec.modality,
        "dim": spec.dim,
        "dtype": spec.dtype,
        "network": spec.network,
        "weights": spec.pinned,
        "fingerprint": spec.fingerprint,
        "pretrained": spec.pretrained,
        "retina": asdict(there) if there else None,
    }
    if speed is not None:
        values["keys_per_second"] = speed if isinstance(speed, float) else None
        values["not_measured"] = speed if isinstance(speed, str) else None
    return values


def print_encoders(
    specs: "list[EncoderSpec]", running: dict[str, Running], speeds: dict[str, float | str], *, measure: bool
) -> None:
    """A row an encoder."""
    table = Table(box=None, pad_edge=False)
    for column in ("view", "modality", "dim", "network", "weights", "fingerprint", "Retina"):
        table.add_column(column, overflow="fold")
    if measure:
        table.add_column("keys/s here", justify="right", overflow="fold")
    for spec in specs:
        weights = escape(spec.pinned) if spec.pretrained else f"[yellow]{escape(spec.pinned)}: NOT pretrained[/]"
        row = [spec.view, spec.modality, str(spec.dim), escape(spec.network), weights, spec.fingerprint]
        row.append(_where(running.get(spec.view)))
        if measure:
            speed = speeds[spec.view]
            row.append(f"{speed:,.1f}" if isinstance(speed, float) else f"[yellow]{escape(speed)}[/]")
        table.add_row(*row)
    out.print(table)


def _where(running: Running | None) -> str:
    if running is None:
        return "-"
    if not running.same:
        return "[red]another fingerprint[/]"
    return f"loaded, {running.device}" if running.loaded else f"when asked, {running.device}"


def measured(settings: Settings, spec: "EncoderSpec") -> float | str:
    """Keys a second of an encoder in this process, through the same batches as in Retina; or why it cannot be run."""
    from embark.local_encoders import load_registered
    from encoders.compute import DeviceUnavailable
    from encoders.spec import SpecError
    from encoders.weights import WeightsUnavailable

    try:
        encoder = load_registered(settings, spec)
    except (WeightsUnavailable, SpecError, DeviceUnavailable) as error:
        return str(error).partition("\n")[0]

    async def run() -> float:
        from embark.local_encoders import Given
        from encoders.batching import Batches
        from encoders.compute import Plan, choose_device

        contents = sample(spec)
        batches = Batches(Given(contents=contents), plan=Plan.of(choose_device(settings.device).type))
        keys = list(contents)
        try:
            await batches.embed(encoder, keys)  # the first pass sets libraries up
            began, done = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < MEASURE_SECONDS:
                await batches.embed(encoder, keys)
                done += len(keys)
            return round(done / spent, 1)
        finally:
            batches.close()

    return asyncio.run(run())


def sample(spec: "EncoderSpec") -> dict[str, bytes]:
    """Real photographs of some 400 pixels as JPEG files by name, or their titles: what a key leads to."""
    from training.photographs import photographs

    if spec.modality == "text":
        return {photograph.title: photograph.title.encode() for photograph in photographs()}
    return {photograph.name: photograph.jpeg for photograph in photographs()}
