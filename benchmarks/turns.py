"""What all benchmarks share: their command line, turns in a random order, and how what was found is printed. Free of
Feast, so that it runs where Feast is not."""

import argparse
import gc
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table


class WrongAnswer(Exception):
    """A way to read or write gave something else than was written: nothing that it measures counts."""


def take_turns(
    ways: Mapping[str, Callable[[], Any]], check: Callable[[str, Any], None], shuffle: random.Random
) -> dict[str, float]:
    """Seconds that each way takes, once, in an order that changes, so that none always comes after the same other.

    Args:
        ways: what to do, by name.
        check: told the name and the outcome, outside of the time; raises WrongAnswer.
        shuffle: where the order comes from.
    """
    order = list(ways)
    shuffle.shuffle(order)
    seconds = {}
    for name in order:
        gc.collect()  # stock's answers leave 77,000 objects in cycles: 0.15 s, in whoever is next
        start = time.perf_counter()
        outcome = ways[name]()
        seconds[name] = time.perf_counter() - start
        check(name, outcome)
    return seconds


def options(doc: str | None, add: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """The command line that all benchmarks have, with what `add` adds to it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fast", action="store_true", help="a smoke run")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the claim does not hold")
    if add is not None:
        add(parser)
    return parser.parse_args()


def publish(
    title: str, rows: Sequence[Mapping[str, Any]], claims: Mapping[str, bool], given: argparse.Namespace
) -> None:
    """Prints what was found; exits with 1 where a claim does not hold and `--check` was given."""
    machine = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, {platform.platform()}"
    if given.json:
        print(json.dumps({"machine": machine, "claims": claims, "rows": rows}, indent=2))
    else:
        table = Table(title=f"{title} on {machine}")
        for column in rows[0]:
            table.add_column(column, justify="left" if column == "way" else "right")
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        console = Console(width=140)
        console.print(table)
        for claim, holds in claims.items():
            console.print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}", highlight=False)
    failed = [claim for claim, holds in claims.items() if not holds]
    if given.check and (failed or not claims):
        sys.exit(f"the claim does not hold: {'; '.join(failed) or 'nothing was measured at its size'}")
