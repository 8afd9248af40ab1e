"""Runs Feast's universal tests of online stores, from a checkout of Feast, on a Cassandra that it starts itself.

    uv run --with-requirements tests/feast_universal/requirements.txt \
        python -m tests.feast_universal --feast PATH [--store plugin|stock] [--names cassandra,redis]

Exit status: 0 where every test passed but those that are known not to, else 1.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from embark.servers import free_port, java
from embark.servers.cassandra import READY_SECONDS, Node
from embark.servers.ports import free_port_of_all
from tests.feast_universal.outcomes import VERDICTS, Result, count, read_results

STORES = ["stock", "plugin"]
NAMES = ["cassandra", "redis", "mongodb", "sqlite", "pgvector", "milvus"]  # under which Feast has tests that suit us
TESTS = [
    "tests/integration/online_store/test_universal_online.py",
    "tests/integration/online_store/test_universal_online_types.py",
    "tests/integration/online_store/test_universal_e2e.py",
    "tests/integration/online_store/test_push_features_to_online_store.py",
    "tests/integration/materialization/test_universal_materialization.py",
]
KEYSPACE = "feast"
HERE = Path(__file__).parent


@click.command(help=__doc__)
@click.option(
    "--feast",
    "checkout",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkout of Feast's repository.",
)
@click.option("--store", "stores", multiple=True, type=click.Choice(STORES), help="Both, where not given.")
@click.option("--names", default=",".join(NAMES), show_default=True, help="Whose tests to run.")
@click.option("--verbose", is_flag=True, help="Show what pytest prints.")
def main(checkout: Path, stores: tuple[str, ...], names: str, verbose: bool) -> None:
    sdk = checkout.resolve() / "sdk" / "python"
    if not (sdk / TESTS[0]).exists():
        raise click.UsageError(f"{checkout} is no checkout of Feast: {sdk / TESTS[0]} is not there")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else Cassandra would outlive a run that is ended
    console = Console()
    results: list[Result] = []
    with TemporaryDirectory(prefix="feast-universal-") as state, running_cassandra(Path(state)) as cassandra:
        for store in stores or STORES:
            for name in names.split(","):
                console.print(f"{store}: Feast's tests for {name} …")
                results += run_tests(sdk, store, name, cassandra, Path(state), verbose)
    show(console, results)
    sys.exit(any(result.verdict in ("failed", "skipped") for result in results))


@contextmanager
def running_cassandra(state: Path) -> Iterator[Node]:
    """A Cassandra on free ports, without the Kafka that `LocalServers` starts beside one."""
    (jars,) = java.class_paths(java.CASSANDRA, verified=state / "verified-jars.json")
    port = free_port()
    node = Node(
        node=1,
        address="127.0.0.1",
        port=port,
        storage_port=free_port_of_all(["127.0.0.1"], besides={port}),
        nodes=1,
        folder=state / "cassandra",
    )
    try:
        node.start(jars)
        node.server.wait_until(node.ready, READY_SECONDS)
        node.create_keyspace(KEYSPACE)
        yield node
    finally:
        node.server.stop()


def run_tests(sdk: Path, store: str, name: str, cassandra: Node, state: Path, verbose: bool) -> list[Result]:
    """Runs the tests that Feast has for a store called `name` in a process of their own."""
    written, printed = state / "outcomes.json", state / "printed.txt"
    written.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(HERE),
        "PYTHONDONTWRITEBYTECODE": "1",  # the checkout is not ours
        "FULL_REPO_CONFIGS_MODULE": "universal_stores",
        "FEAST_IS_LOCAL_TEST": "True",  # until the tests are collected, see `universal_plugin`
        "UNIVERSAL_STORE": store,
        "UNIVERSAL_NAME": name,
        "UNIVERSAL_HOST": cassandra.address,
        "UNIVERSAL_PORT": str(cassandra.port),
        "UNIVERSAL_KEYSPACE": KEYSPACE,
        "UNIVERSAL_OUTCOMES": str(written),
    }
    # -P: not the checkout's `feast`, which lies in the working folder, but the installed one.
    command = [sys.executable, "-P", "-m", "pytest", "-p", "universal_plugin", "-p", "no:cacheprovider"]
    with printed.open("wb") as log:
        done = subprocess.run(
            [*command, "--integration", *TESTS],
            cwd=sdk,
            env=environment,
            stdout=None if verbose else log,
            stderr=None if verbose else log,
            check=False,
        )
    results = read_results(store, name, written.read_text()) if written.exists() else []
    if not results:
        sys.stderr.write(printed.read_text(errors="replace"))
        raise click.ClickException(f"no test of {name} was run: pytest ended with {done.returncode}")
    return results


def show(console: Console, results: list[Result]) -> None:
    """Prints a table of the counts, and each test that did not pass."""
    table = Table("store", "Feast's tests for", "passed", "failed", "skipped", "known not to pass")
    for (store, name), counted in count(results).items():
        table.add_row(store, name, *(str(counted[verdict]) for verdict in VERDICTS))
    console.print(table)
    for result in results:
        verdict, why = result.verdict, result.why
        if result.known and verdict == "passed":
            verdict, why = "passed, though known not to", result.known.why
        elif result.known and verdict == "known":
            verdict, why = "known not to pass", result.known.why
        if verdict != "passed":
            line = f"{verdict}: {result.store}, {result.name}: {result.test}\n    {why}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
