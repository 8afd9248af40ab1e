"""`embark console`: the state of the archive as a web page, or once as JSON."""

import json
import time

import click

from embark.console import AS_JSON, err, one_line_errors, start_logging
from embark.settings import Settings


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="EMBARK_CONSOLE_ADDRESS otherwise, 127.0.0.1:8080.")
@click.option(
    "--token", metavar="TOKEN", help="That lets people ask and retry; EMBARK_CONSOLE_TOKEN keeps it out of ps."
)
@click.option("--open", "open_to_read", is_flag=True, help="Reading needs no token, also from other machines.")
@click.option("--embark-metrics", metavar="HOST:PORT,…", help="Where EmbArk tells its metrics; as the setting.")
@click.option("--kfc-metrics", metavar="HOST:PORT,…", help="Where KFC does.")
@click.option("--retina-metrics", metavar="HOST:PORT,…", help="Where Retina does.")
@AS_JSON
@click.pass_obj
@one_line_errors
def console(
    settings: Settings,
    listen: str | None,
    token: str | None,
    open_to_read: bool,
    embark_metrics: str | None,
    kfc_metrics: str | None,
    retina_metrics: str | None,
    as_json: bool,
) -> None:
    """Show the state of the archive as a web page: encoders, rates, newest items, dead letters, and a search box.

    Read-only, unless there is a token: who signs in with it may ask for keys and retry dead letters. On an address that
    other machines reach it wants TLS as `embark serve` does, and a token, which reading then needs too, or --open.
    --json prints the state once instead, as http://HOST:PORT/api/state answers it. `docs/console.md` has the rest.

    \b
    EMBARK_EMBARK_METRICS=127.0.0.1:9461 EMBARK_KFC_METRICS=127.0.0.1:9471 embark console
    embark console --retina-metrics 127.0.0.1:9481 --json
    """
    import kafka  # noqa: F401 - before Feast, which from then on shows the deprecation warnings of every library

    options: dict[str, object] = {
        "console_address": listen,
        "console_token": token,
        "embark_metrics": embark_metrics,
        "kfc_metrics": kfc_metrics,
        "retina_metrics": retina_metrics,
    }
    changed = settings.overridden(options)
    start_logging(changed)
    from embark.web_console.running import run_console
    from embark.web_console.state import Observed
    from embark.web_console.trail import EVERY_SECONDS

    if not as_json:
        run_console(changed, open_to_read=open_to_read)
        return
    observed = Observed(changed)
    observed.trail.look()
    with err.status("watching the parts"):
        time.sleep(EVERY_SECONDS)  # rates are of what has grown since
    observed.trail.look()
    click.echo(json.dumps(observed.read_now().to_json(), indent=2))
