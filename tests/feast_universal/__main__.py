"""Runs Feast's universal tests of stores, from a checkout of Feast: online ones on a Cassandra that it starts itself.

    uv run --with-requirements tests/feast_universal/requirements.txt \
        python -m tests.feast_universal --feast PATH [--kind online|offline] [--store plugin|stock] [--names redis]

Exit status: 0 where every test passed but those that are known not to, else 1.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from embark.servers import free_port, java
from embark.servers.cassandra import READY_SECONDS, Node
from tests.feast_universal.outcomes import VERDICTS, Result, count, read_results


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of store that Feast has universal tests of.

    Attributes:
        configuration: the module that tells Feast's tests what to run on.
        names: store → what it is tested as, see `docs/feast-tests.md`.
        tests: in a checkout's `sdk/python`.
    """

    configuration: str
    names: Mapping[str, list[str]]
    tests: list[str]


ONLINE_NAMES = ["cassandra", "redis", "mongodb", "sqlite", "pgvector", "milvus"]  # whose tests suit us
KINDS = {
    "online": Kind(
        configuration="universal_stores",
        names={"stock": ONLINE_NAMES, "plugin": ONLINE_NAMES},
        tests=[
            "tests/integration/online_store/test_universal_online.py",
            "tests/integration/online_store/test_universal_online_types.py",
            "tests/integration/online_store/test_universal_e2e.py",
            "tests/integration/online_store/test_push_features_to_online_store.py",
            "tests/integration/materialization/test_universal_materialization.py",
        ],
    ),
    "offline": Kind(
        configuration="universal_offline_stores",
        names={"stock": ["files"], "plugin": ["files", "parts"]},
        tests=[
            "tests/integration/offline_store/test_universal_historical_retrieval.py",
            "tests/integration/offline_store/test_universal_materialization.py",
            "tests/integration/offline_store/test_universal_types.py",
            "tests/integration/offline_store/test_offline_write.py",
            "tests/integration/offline_store/test_push_features_to_offline_store.py",
            "tests/integration/offline_store/test_persist.py",
            "tests/integration/offline_store/test_feature_logging.py",
        ],
    ),
}
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
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Both, where not given.")
@click.option("--store", "stores", multiple=True, type=click.Choice(["stock", "plugin"]), help="Both, where not given.")
@click.option("--names", help="Whose tests to run, by comma; all, where not given.")
@click.option("--verbose", is_flag=True, help="Show what pytest prints.")
def main(checkout: Path, kinds: tuple[str, ...], stores: tuple[str, ...], names: str | None, verbose: bool) -> None:
    sdk = checkout.resolve() / "sdk" / "python"
    wanted = [
        (kind, store, name)
        for kind in kinds or KINDS
        for store in stores or KINDS[kind].names
        for name in KINDS[kind].names[store]
        if names is None or name in names.split(",")
    ]
    if not wanted:
        raise click.UsageError(f"there are no tests under the names {names}")
    for test in (test for kind, _, _ in wanted for test in KINDS[kind].tests):
        if not (sdk / test).exists():
            raise click.UsageError(f"{checkout} is no checkout of Feast: {sdk / test} is not there")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else Cassandra would outlive a run that is ended
    console = Console()
    results: list[Result] = []
    with TemporaryDirectory(prefix="feast-universal-") as folder, ExitStack() as servers:
        state, cassandra = Path(folder), None
        for kind, store, name in wanted:
            if kind == "online" and cassandra is None:
                cassandra = servers.enter_context(running_cassandra(state))
            console.print(f"{store}: Feast's tests of {kind} stores, for {name} …")
            results += run_tests(sdk, kind, store, name, cassandra, state, verbose)
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
        storage_port=free_port(besides={port}),
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


def run_tests(
    sdk: Path, kind: str, store: str, name: str, cassandra: Node | None, state: Path, verbose: bool
) -> list[Result]:
    """Runs the tests that Feast has for a store called `name` in a process of their own."""
    written, printed = state / "outcomes.json", state / "printed.txt"
    written.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(HERE),
        "PYTHONDONTWRITEBYTECODE": "1",  # the checkout is not ours
        "FULL_REPO_CONFIGS_MODULE": KINDS[kind].configuration,
        "FEAST_IS_LOCAL_TEST": "True",  # until the tests are collected, see `universal_plugin`
        "UNIVERSAL_KIND": kind,
        "UNIVERSAL_STORE": store,
        "UNIVERSAL_NAME": name,
        "UNIVERSAL_OUTCOMES": str(written),
    }
    if cassandra is not None:
        environment |= {
            "UNIVERSAL_HOST": cassandra.address,
            "UNIVERSAL_PORT": str(cassandra.port),
            "UNIVERSAL_KEYSPACE": KEYSPACE,
        }
    # -P: not the checkout's `feast`, which lies in the working folder, but the installed one.
    command = [sys.executable, "-P", "-m", "pytest", "-p", "universal_plugin", "-p", "no:cacheprovider"]
    with printed.open("wb") as log:
        done = subprocess.run(
            [*command, "--integration", *KINDS[kind].tests],
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
