"""Claim: the hit and OOV rates that `embark plan` simulates are within 5 points of those of a real run of 2 minutes.

    uv run python -m benchmarks.plan [--json] [--fast] [--check]

Real Kafka, Cassandra, Retina, KFC and EmbArk on this machine, all empty at first. Look-ups of texts are drawn by
Zipf's law from a catalogue in which new texts take the places of old ones. Before it begins, 20 new keys are watched
until they are hits: the median time is the delay that is simulated. Nothing else is fitted. With --fast it takes 15 s.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import WrongAnswer, options, publish
from embark.child_process import ChildProcess
from embark.planning.simulation import Course, simulate
from embark.planning.workload import DAY, Workload
from embark.repo import open_store, write_repo
from embark.servers import LocalServers, free_port
from embark.settings import Settings
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status
from feature_repo.views import feast_objects
from serving.client import EmbArkClient

SPEC = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0")
ITEMS = 2000
SKEW = 0.9
KEYS = 10  # of a call
CALLS = 5.0  # a second, if the machine keeps up: what it did is what is simulated
NEW_A_SECOND = 2.0
POINTS = 0.05
PARTS = 4  # of the run, each compared by itself
BUDGET_MS = 30_000  # a busy machine is slow, and no outage
WATCHED = 20


@contextmanager
def running(folder: Path) -> Iterator[EmbArkClient]:
    """A client of an EmbArk with everything behind it."""
    servers = LocalServers(state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port())
    settings = Settings(
        repo=folder / "repo",
        embark_address=f"127.0.0.1:{free_port()}",
        retina_address=f"127.0.0.1:{free_port()}",
        retina_warm=[SPEC.view],
        lookup_budget_ms=BUDGET_MS,
    )
    with ExitStack() as stack:
        stack.callback(servers.down)
        servers.up()
        write_repo(settings.repo, kafka=servers.kafka_bootstrap, cassandra_port=servers.cassandra_port)
        store = open_store(settings.repo)
        store.apply(list(feast_objects([SPEC], {}, kafka=servers.kafka_bootstrap, repo=settings.repo).values()))
        parts = {}
        for part in ("retina", "materialize", "serve"):
            process = ChildProcess(part, [part], settings.as_environment(), folder / f"{part}.txt")
            parts[part] = stack.enter_context(process)
        client = stack.enter_context(EmbArkClient(settings.embark_address))
        parts["serve"].wait_until(lambda: client.answers(SPEC.view), 300)
        yield client


def miss_to_hit(client: EmbArkClient, name: str) -> float:
    """The median of the seconds until new keys, asked for one after the other, are hits."""
    asked: dict[str, float] = {}
    taken: list[float] = []
    until = time.monotonic() + 300
    while len(taken) < WATCHED:
        if time.monotonic() > until:
            raise WrongAnswer(f"of {WATCHED} keys {len(taken)} became hits in five minutes")
        if len(asked) + len(taken) < WATCHED:
            asked[f"{name} {len(asked) + len(taken)}"] = time.monotonic()
        keys = list(asked)
        status = client.lookup(SPEC.view, keys, timeout=60).status
        now = time.monotonic()
        for key, each in zip(keys, status, strict=True):
            if each == Status.HIT:
                taken.append(now - asked.pop(key))
        time.sleep(0.2)
    return float(np.median(taken))


def measured(client: EmbArkClient, seconds: float) -> tuple[np.ndarray, int]:
    """(N, 2) time and whether it was OOV, of each key that was answered; and how many texts were new."""
    draw = np.random.default_rng(0)
    weights = np.arange(1, ITEMS + 1) ** -SKEW
    weights /= weights.sum()
    catalogue = [f"title {i}" for i in range(ITEMS)]
    new = 0
    rows: list[tuple[float, bool]] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        while new < now * NEW_A_SECOND:
            catalogue[int(draw.integers(ITEMS))] = f"new title {new}"
            new += 1
        chosen = draw.choice(ITEMS, KEYS, p=weights)
        status = client.lookup(SPEC.view, [catalogue[i] for i in chosen], timeout=60).status
        if not np.isin(status, (Status.HIT, Status.OOV)).all():
            raise WrongAnswer(f"not only hits and OOV: {np.bincount(status)}")
        rows += [(now, bool(each == Status.OOV)) for each in status]
        time.sleep(max(0.0, now + 1 / CALLS - (time.monotonic() - began)))
    return np.array(rows), new


def compared(found: np.ndarray, course: Course, seconds: float) -> list[dict[str, Any]]:
    rows = []
    bounds = [(0.0, seconds), *((i * seconds / PARTS, (i + 1) * seconds / PARTS) for i in range(PARTS))]
    for start, end in bounds:
        within = (found[:, 0] >= start) & (found[:, 0] < end)
        if not within.any():
            raise WrongAnswer(f"no look-up between {start:.0f} s and {end:.0f} s")
        real, simulated = float(found[within, 1].mean()), course.mean_oov(start, end)
        rows.append(
            {
                "way": f"{start:.0f} to {end:.0f} s",
                "look-ups": int(within.sum()),
                "OOV, measured": round(real, 4),
                "OOV, simulated": round(simulated, 4),
                "HIT, measured": round(1 - real, 4),
                "HIT, simulated": round(1 - simulated, 4),
                "points apart": round(100 * abs(real - simulated), 2),
            }
        )
    return rows


def run(given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    seconds = 15.0 if given.fast else 120.0
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as client:
        miss_to_hit(client, "warm")  # loads what is loaded at the first request
        delay = miss_to_hit(client, "watched")
        found, new = measured(client, seconds)
    workload = Workload(
        lookups=len(found) / seconds,
        items=ITEMS,
        new_items=new / seconds * DAY,
        skew=SKEW,
        archived=0.0,
        seconds=seconds,
        delay=delay,
    )
    rows = compared(found, simulate(workload, np.inf), seconds)
    apart = rows[0]["points apart"] / 100
    claim = f"{100 * apart:.2f} points apart over {seconds:.0f} s ({100 * POINTS:.0f}), delay {delay:.2f} s"
    return rows, {} if given.fast else {claim: apart < POINTS}


def main() -> None:
    given = options(__doc__)
    rows, claims = run(given)
    publish("Hit and OOV rates, simulated and real,", rows, claims, given)


if __name__ == "__main__":
    main()
